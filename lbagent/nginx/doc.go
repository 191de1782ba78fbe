// Package nginx drives nginx on one Host, in two ways that implement driver.Driver:
//
//   - NewLua, for nginx with Debian's http-lua module: routes and upstreams are data in a shared dictionary. Adding,
//     changing, draining and removing an App never reloads, and a flip is one write that every worker sees at its next
//     request.
//   - NewReload, for nginx without Lua: every change of routable state is a new immutable generation directory and a
//     reload. Its limits (Info.Limits) are those of nginx's reload.
//
// # The owner's configuration
//
// The base configuration is the owner's. The contract is one relative line in its http{}: "include cutover/*.conf;", where
// "cutover", beside the base file, is a symbolic link to Dir/current. nginx resolves it beside the file given with -c,
// so "nginx -t" of a mirror of the owner's directory, with "cutover" pointing to a staged tree, tests exactly the owner's
// base with our next configuration. With Lua, init_by_lua and init_worker_by_lua are ours.
//
// # Files below Dir (mode 0700)
//
//	run/              private unix sockets: nginx makes sockets with mode 0666, the directory protects them
//	current           symbolic link to what nginx loads, swapped by rename(2)
//	epoch, lock       Lua: count of starts of the agent, which fences writes of an older agent (invariant FENCE)
//	frames/DIGEST/    Lua: the Frame (configuration and Lua code), immutable
//	apps/APP.section  Lua: published Sections, each replaced by rename(2)
//	gens/gen-N/       reload: whole generations, immutable: tree/, which current points to, and the number N, which
//	                  leads nginx to tree/load by absolute paths: it never loads parts of two generations
//
// What the link current leads to and apps/ are functions of the Frame and the Sections alone. Restoring a Section therefore
// restores them byte for byte, which is what UNDO compares.
//
// # What is proof
//
// Exit codes and pid files prove nothing (RUNNING = JOURNAL). A worker answers on our private socket and says its pid;
// the kernel says who its parent is; the parent must be an nginx master; its other children are the workers. With Lua
// each worker reports itself which version it has applied. Without Lua, each generation listens on a unix socket of its
// own, and the kernel says which workers hold it.
//
// Start nginx as "nginx -c BASE -p PREFIX -e stderr -g 'daemon off;'" after Bootstrap, every time: Bootstrap also ends orphaned
// workers of a killed master and removes sockets that nobody listens on, which would keep nginx from starting.
package nginx
