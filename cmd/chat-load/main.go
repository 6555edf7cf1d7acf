// Command chat-load puts load on a chat-transportation gateway, and for comparison on
// RabbitMQ's Web STOMP plugin or on the broker alone, and counts what comes of it: each
// message that is sent is reconciled with each that is received. See chat-load -h.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // something was lost, or the run could not be done
	exitUsage  = 2
)

func main() {
	if os.Getenv(workerVariable) != "" {
		os.Exit(serveWorker(os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the second one ends the process: the handler is gone.
	context.AfterFunc(ctx, stop)
	code := command(ctx, os.Args[1:], os.LookupEnv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command does what the arguments say and returns the exit code. When ctx ends, it stops
// and prints what it has.
func command(ctx context.Context, arguments []string, lookup func(string) (string, bool), stdin io.Reader, stdout, stderr io.Writer) int {
	if len(arguments) > 0 && arguments[0] == "compare" {
		return compare(arguments[1:], stdin, stdout, stderr)
	}
	p, err := parsePlan(arguments, lookup, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	}
	progress := stderr
	if p.quiet {
		progress = io.Discard
	}
	result, err := run(ctx, p, progress)
	if err != nil {
		fmt.Fprintln(stderr, "chat-load:", err)
		return exitFailed
	}
	if p.json {
		err = result.writeJSON(stdout)
	} else {
		err = result.writeTable(stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "chat-load:", err)
		return exitFailed
	}
	if !result.OK {
		return exitFailed
	}
	return exitOK
}
