package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// This file is what a command says that was not called right.

// usageError is a command that was not called right.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Usage makes err one of whoever called the command: it exits with 1, and is told as a refusal, not as a failure of the
// program. nil stays nil.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err}
}

// asGroup makes cmd a group of commands: alone it prints its help, and one that it does not have is named.
func asGroup(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return &usageError{unknownCommand(cmd, args[0])}
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// unknownCommand says that group has no such command, and which ones are like it.
func unknownCommand(group *cobra.Command, name string) error {
	hint := ""
	group.SuggestionsMinimumDistance = 2
	if like := group.SuggestionsFor(name); len(like) > 0 {
		hint = "; did you mean: " + group.CommandPath() + " " + strings.Join(like, ", or "+group.CommandPath()+" ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q%s; %s --help lists them", name, group.CommandPath(), hint, group.CommandPath())
}

// flagError says what is wrong with a flag.
func flagError(cmd *cobra.Command, err error) error {
	// Flags of a command that does not exist are read as its group's: that they are wrong is not what is wrong.
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		return &usageError{unknownCommand(cmd, args[0])}
	}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && strings.Trim(unknown.GetSpecifiedName(), "0123456789") == "" {
		err = fmt.Errorf("-%s: a number here cannot be negative (it reads as a flag)", unknown.GetSpecifiedName())
	}
	return &usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
}

// helpCommand is `cutover help`: unlike cobra's own it fails for a command that does not exist.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about any command",
		RunE: func(cmd *cobra.Command, args []string) error {
			of, rest, err := cmd.Root().Find(args)
			switch {
			case err != nil:
				return &usageError{err}
			case len(rest) > 0 && of.HasSubCommands():
				return &usageError{unknownCommand(of, rest[0])}
			}
			of.InitDefaultHelpFlag() // so that its help shows it
			return of.Help()
		},
	}
}

// asUsage makes wrong arguments of every command a usageError, and every command that has others a group.
func asUsage(cmd *cobra.Command) {
	check := cmd.Args
	switch {
	case cmd.HasSubCommands():
		asGroup(cmd)
	case check != nil:
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &usageError{fmt.Errorf("%s: %w; see %s --help", cmd.CommandPath(), argumentsError(cmd, args, err), cmd.CommandPath())}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		asUsage(sub)
	}
}

// argumentsError says which arguments a command wants. Cobra says only how many, and takes one too many for a command.
func argumentsError(cmd *cobra.Command, args []string, err error) error {
	usage := strings.TrimPrefix(cmd.Use, cmd.Name())
	wanted := len(strings.Fields(usage))
	if flag := strings.Index(usage, " -"); flag >= 0 {
		wanted = len(strings.Fields(usage[:flag]))
	}
	switch {
	case len(args) < wanted:
		return fmt.Errorf("an argument is missing: %s", cmd.UseLine())
	case len(args) > wanted && wanted == 0:
		return fmt.Errorf("it takes no argument, and %q is one", args[0])
	case len(args) > wanted:
		return fmt.Errorf("%q is one argument too many: %s", args[wanted], cmd.UseLine())
	}
	return err
}
