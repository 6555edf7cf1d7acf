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
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
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
	defer collectLess(lookup)()
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

// collectorVariable is the Go runtime's own: who sets it has decided.
const collectorVariable = "GOGC"

// generatorPercent is the GOGC of the processes that generate load. Go's default lets
// their heap, which is mostly buffers of connections, be collected so often that it shows
// in what is measured: the 99th percentile of a round trip over 1,000 connections is 3 ms
// with the collector off and 4 ms with the default. There is no memory limit besides:
// a heap that outgrew it would be collected without end. GOMEMLIMIT sets one.
const generatorPercent = 400

// collectLess makes this process collect its garbage less often, unless the environment
// says how often. It returns what undoes that.
func collectLess(lookup func(string) (string, bool)) (undo func()) {
	if value, ok := lookup(collectorVariable); ok && value != "" {
		return func() {}
	}
	before := debug.SetGCPercent(generatorPercent)
	return func() { debug.SetGCPercent(before) }
}

// workerEnvironment returns the environment of a worker process. A worker that generates
// load collects less, like this process. One that is the floor does not: it is compared
// with the gateway, which runs with Go's default.
func workerEnvironment(environment []string, target string) []string {
	environment = append(slices.Clone(environment), workerVariable+"=1")
	decided := slices.ContainsFunc(environment, func(entry string) bool {
		name, value, _ := strings.Cut(entry, "=")
		return name == collectorVariable && value != ""
	})
	if target == targetAMQP || decided {
		return environment
	}
	return append(environment, collectorVariable+"="+strconv.Itoa(generatorPercent))
}
