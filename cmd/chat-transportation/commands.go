package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/authpass"
	"github.com/aleksandrshaulskyi/chat-transportation/modules/config"
)

// command runs what the arguments name and returns the exit code.
func command(args []string) int {
	name := "serve"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch name {
	case "serve":
		return serve()
	case "token":
		return printToken(args, os.Stdout, os.Stderr)
	case "healthcheck":
		return healthcheck(os.Stderr)
	case "backend":
		return backend()
	case "version", "-version", "--version":
		fmt.Println(version())
		return exitOK
	case "help", "-h", "-help", "--help":
		printUsage(os.Stdout)
		return exitOK
	}
	fmt.Fprintf(os.Stderr, "unknown command %q; -h lists the commands\n", name)
	return exitUsage
}

func printUsage(to io.Writer) {
	fmt.Fprint(to, `chat-transportation is a WebSocket gateway for RabbitMQ.

  chat-transportation               serve; in demo mode where neither RABBITMQ_URL nor KEY is set
  chat-transportation token -user 42 [-ttl 1h]
                                    print a token signed with KEY, for trying things out
  chat-transportation healthcheck   exit with 0 if the instance on this machine is ready
  chat-transportation backend       stand in for the messaging service at RABBITMQ_URL
  chat-transportation version       print the version

The configuration comes from the environment and from a .env file in the working
directory; the environment wins.

`)
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, variable := range config.Variables() {
		about := variable.About
		if variable.Default != "" {
			about += " (default " + variable.Default + ")"
		}
		fmt.Fprintf(table, "  %s\t%s\n", variable.Name, about)
	}
	_ = table.Flush()
}

// version returns the version of the module that was built, "(devel)" for a checkout.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// printToken prints a token for a user, as the authentication service would issue it.
func printToken(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("token", flag.ContinueOnError)
	flags.SetOutput(stderr)
	user := flags.String("user", "", "user id that the token is for")
	ttl := flags.Duration("ttl", time.Hour, "how long the token is valid")
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	id, err := domain.ParseUserID(*user)
	if err != nil || *ttl <= 0 || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "usage: chat-transportation token -user 42 [-ttl 1h]")
		return exitUsage
	}
	cfg, err := config.Load("KEY", "KEY_FILE", "ALGORITHM")
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	if cfg.Demo || cfg.Auth.Token.Key == "" { // demo mode has a random key
		fmt.Fprintln(stderr, "KEY is not set: there is nothing to sign the token with")
		return exitFailed
	}
	token, err := authpass.SignToken(cfg.Auth.Token, id, *ttl)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	fmt.Fprintln(stdout, token)
	return exitOK
}

// healthcheck asks the instance on this machine whether it is ready. It is for
// containers that have no shell and no curl.
func healthcheck(stderr io.Writer) int {
	cfg, err := config.Load("HTTP_ADDR", "ADMIN_ADDR")
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	address := cfg.HTTP.Addr
	if cfg.HTTP.AdminAddr != "" {
		address = cfg.HTTP.AdminAddr
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+localAddress(address)+"/readyz", nil)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailed
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		fmt.Fprintln(stderr, response.Status, strings.TrimSpace(string(body)))
		return exitFailed
	}
	return exitOK
}

// localAddress returns where a listener on address is reached from this machine.
func localAddress(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
