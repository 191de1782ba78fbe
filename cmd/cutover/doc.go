// Command cutover is the one binary of Cutover: the command line, and the daemons behind it.
//
// There is no logic here. Each command reads its flags into Options and runs them: the clients of the API are in
// orchestrator/cli, the daemons are registered in daemons.
package main
