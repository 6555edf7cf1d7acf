package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Scenarios.
const (
	scenarioIdle      = "idle"
	scenarioDelivery  = "delivery"
	scenarioInbound   = "inbound"
	scenarioRoundTrip = "roundtrip"
	scenarioStorm     = "storm"
	scenarioChurn     = "churn"
)

// Targets.
const (
	targetGateway  = "gateway"
	targetWebSTOMP = "webstomp"
	targetAMQP     = "amqp"
)

var (
	scenarios = []string{scenarioIdle, scenarioDelivery, scenarioInbound, scenarioRoundTrip, scenarioStorm, scenarioChurn}
	targets   = []string{targetGateway, targetWebSTOMP, targetAMQP}
	// defaultURLs are where the targets listen by default.
	defaultURLs = map[string]string{targetGateway: "http://127.0.0.1:8001", targetWebSTOMP: "ws://127.0.0.1:15674/ws"}
	// defaultRates are per second: messages, or for churn connections.
	defaultRates = map[string]float64{scenarioDelivery: 1000, scenarioInbound: 1000, scenarioRoundTrip: 500, scenarioChurn: 50}
)

// Words that stand for a rate and for no broker.
const (
	rateFlood = "flood"
	amqpNone  = "none"
)

// plan is what the command line asks for; it has been checked.
type plan struct {
	scenario    string
	target      string
	urls        []string
	insecure    bool
	key         []byte
	algorithm   string
	broker      brokerConfig
	useBroker   bool
	scope       string
	users       int
	perUser     int
	firstUser   int64
	workers     int
	sources     []netip.Addr
	rate        float64 // 0: flood
	messages    uint64  // 0: as many as go into duration
	duration    time.Duration
	bytes       int
	window      uint64
	concurrency int
	connectRate float64
	patience    time.Duration
	settle      time.Duration
	drain       time.Duration
	restart     bool
	gatewayPIDs []int
	brokerPIDs  []int
	json        bool
	quiet       bool
	label       string
	run         uint32
}

// connections returns how many connections the whole run has.
func (p plan) connections() int { return p.users * p.perUser }

// shares divides the users among the workers.
func (p plan) shares() []share {
	shares := make([]share, p.workers)
	for i := range shares {
		shares[i] = share{p.users * i / p.workers, p.users * (i + 1) / p.workers}
	}
	return shares
}

// crew returns the configuration of the crew with a share of the users.
func (p plan) crew(it share) CrewConfig {
	return CrewConfig{
		Target: p.target, URLs: p.urls, Insecure: p.insecure, Key: p.key, Algorithm: p.algorithm,
		FirstUser: p.firstUser, From: it.From, To: it.To, PerUser: p.perUser, Sources: p.sources,
		Envelope: envelopeConfig{p.bytes, time.Now()}, Run: p.run, Echo: p.scenario == scenarioRoundTrip,
		AMQP: p.broker, Scope: p.scope,
	}
}

// errUsage is returned where the command line is wrong; what is wrong has been printed.
var errUsage = errors.New("usage")

const synopsis = `chat-load puts load on a chat-transportation gateway and counts what comes of it:
every message that it sends is reconciled with every one that it receives.

  chat-load SCENARIO [flags]          run a scenario
  chat-load compare [flags] [FILE]    one table of many runs, from their -json output

Scenarios
  idle       connect, then only stay for -duration
  delivery   a backend publishes for the users over AMQP, the connections receive
  inbound    the connections send, a backend consumes from the database exchange
  roundtrip  the connections send, a backend answers each message to its sender
  storm      all connections are cut at once and come again; with -restart the
             gateway cuts them: start chat-load, then restart the gateway
  churn      connections leave and come again, -rate a second
After idle, storm and churn one message is published for each user, to see that every
connection receives (-amqp none leaves that out).

The gateway limits its clients by default. For load, start it with
  PASS_REQUESTS_PER_MINUTE=0   passes of one user (default 60 a minute)
  WS_MESSAGES_PER_SECOND=0     messages of one connection (default 20 a second)
and mind WS_MAX_CONNECTIONS_PER_USER (16) and the limit of open files (ulimit -n) of the
gateway, the broker and this program. One source address has some 28,000 ports: for
more connections to one address use -source-addresses.

So that its own garbage collector does not show in the latencies, this program runs
with GOGC=400 where the variable GOGC is not set. The floor's consumers, -target amqp,
keep Go's default, as the gateway does, or what GOGC says.

A progress line goes to stderr, the result to stdout. The exit code is 0 when all went
well up to the end or to an interrupt; 1 when a message was lost, came twice, out of
order or to the wrong user, when none arrived, when a connection failed or was ended by
the other side (but by -restart), or when the run could not be done; 2 for a wrong
command line. A message that the gateway refuses is counted apart: it is not lost.

Flags
`

// parsePlan reads the command line: the scenario and flags. The key may come from the
// environment variable KEY, as the gateway's does.
func parsePlan(arguments []string, lookup func(string) (string, bool), messages io.Writer) (plan, error) {
	p := plan{run: rand.Uint32()}
	flags := flag.NewFlagSet("chat-load", flag.ContinueOnError)
	// The flag package would print all of the help below each error.
	flags.SetOutput(io.Discard)
	var urls, key, rate, sources, gatewayPIDs, brokerPIDs string
	var messageCount int64
	var window int
	flags.StringVar(&p.target, "target", targetGateway, "what to talk to: gateway; webstomp, RabbitMQ's plugin; or amqp, the\nbroker without WebSockets, which is the floor to compare with")
	flags.StringVar(&urls, "url", "", "`URLs` of the target, comma-separated: connections take turns (default\n"+defaultURLs[targetGateway]+", or "+defaultURLs[targetWebSTOMP]+" for webstomp)")
	flags.BoolVar(&p.insecure, "insecure", false, "accept any TLS certificate")
	flags.StringVar(&p.broker.URL, "amqp", "amqp://guest:guest@127.0.0.1:5672/", "`URL` of the broker, or none")
	flags.StringVar(&p.broker.Websockets, "websockets-exchange", "websockets", "exchange that deliveries go to")
	flags.StringVar(&p.broker.Database, "database-exchange", "database", "exchange that messages of clients go to")
	flags.StringVar(&p.scope, "scope", scopeInstance, "queues of -target amqp: user or instance, as the gateway's QUEUE_SCOPE")
	flags.StringVar(&key, "key", "", "`secret` that the gateway checks tokens with (default: the variable KEY)")
	flags.StringVar(&p.algorithm, "algorithm", "HS256", "of the tokens: HS256, HS384, HS512")
	flags.IntVar(&p.users, "users", 100, "how many users")
	flags.IntVar(&p.perUser, "connections-per-user", 1, "connections of each user")
	flags.Int64Var(&p.firstUser, "first-user", 1, "`id` of the first user; the others follow")
	flags.IntVar(&p.workers, "workers", 1, "processes that hold the connections; 1: this one does, but for -target amqp")
	flags.StringVar(&sources, "source-addresses", "", "`addresses` to connect from in turn: comma-separated, or a range such as\n127.0.0.2-127.0.0.9")
	flags.StringVar(&rate, "rate", "", "`messages` a second, or flood: as fast as -window lets (default 1000; roundtrip\n500); for churn connections a second (default 50)")
	flags.Int64Var(&messageCount, "messages", 0, "how many messages; 0: as many as go into -duration")
	flags.DurationVar(&p.duration, "duration", 30*time.Second, "how long the scenario lasts, after connecting, at most")
	flags.IntVar(&p.bytes, "bytes", 330, fmt.Sprintf("`size` of a message as it stands at the broker, %d to %d", minBytes, maxBytes))
	flags.IntVar(&window, "window", 0, "messages under way at once, for flood (default: 32 a connection, at most 1024:\nlonger queues only slow the broker down)")
	flags.IntVar(&p.concurrency, "concurrency", 0, "connects under way at once (default 128; storm: 1000)")
	flags.Float64Var(&p.connectRate, "connect-rate", 0, "connects a second; 0: as fast as -concurrency lets")
	flags.DurationVar(&p.patience, "patience", 60*time.Second, "how long failed connects are tried again; 0: not at all, as in churn")
	flags.DurationVar(&p.settle, "settle", 2*time.Second, "rest between connecting and the scenario")
	flags.DurationVar(&p.drain, "drain", 5*time.Second, "how long to wait, at the end, while nothing more arrives")
	flags.BoolVar(&p.restart, "restart", false, "storm: wait until the gateway ends the connections, for -duration at most,\ninstead of cutting them")
	flags.StringVar(&gatewayPIDs, "gateway-pid", "", "`processes` to measure as the gateway, comma-separated (default: who listens on\nthe ports of -url, if that is this machine; Linux only)")
	flags.StringVar(&brokerPIDs, "broker-pid", "", "`processes` to measure as the broker, comma-separated (default: who\nlistens on the port of -amqp, likewise)")
	flags.BoolVar(&p.json, "json", false, "print the result as one line of JSON instead of a table")
	flags.StringVar(&p.label, "label", "", "`name` of the run, for compare (default: the target)")
	flags.BoolVar(&p.quiet, "quiet", false, "no progress line")

	if len(arguments) > 0 && !strings.HasPrefix(arguments[0], "-") {
		p.scenario, arguments = arguments[0], arguments[1:]
	}
	if err := flags.Parse(arguments); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(messages, synopsis)
		flags.SetOutput(messages)
		flags.PrintDefaults()
		return plan{}, err
	} else if err != nil {
		fmt.Fprintf(messages, "chat-load: %v\nchat-load -h explains.\n", err)
		return plan{}, errUsage
	}
	var faults []string
	fault := func(format string, values ...any) { faults = append(faults, fmt.Sprintf(format, values...)) }
	oneOf := func(name, value string, allowed []string) {
		if !slices.Contains(allowed, value) {
			fault("%s is one of %s", name, strings.Join(allowed, ", "))
		}
	}
	if flags.NArg() > 0 {
		fault("unexpected argument %q: the scenario comes first, then flags", flags.Arg(0))
	}
	if p.scenario == "" {
		fault("which scenario? One of %s", strings.Join(scenarios, ", "))
	} else {
		oneOf("the scenario", p.scenario, scenarios)
	}
	oneOf("-target", p.target, targets)
	oneOf("-scope", p.scope, []string{scopeUser, scopeInstance})
	oneOf("-algorithm", p.algorithm, []string{"HS256", "HS384", "HS512"})

	if urls == "" {
		urls = defaultURLs[p.target]
	}
	if p.target != targetAMQP {
		for text := range strings.SplitSeq(urls, ",") {
			text = strings.TrimSpace(text)
			if _, err := parsePlace(text, p.insecure); err != nil {
				fault("-url: %v", err)
			}
			p.urls = append(p.urls, text)
		}
	}
	p.useBroker = p.broker.URL != amqpNone
	if _, err := amqp.ParseURI(p.broker.URL); p.useBroker && err != nil {
		fault("-amqp: not an AMQP URL") // the error would show the password
	} else if !p.useBroker && (p.target != targetGateway || p.scenario == scenarioDelivery || p.scenario == scenarioInbound || p.scenario == scenarioRoundTrip) {
		fault("-amqp none: %s with target %s needs the broker", p.scenario, p.target)
	}
	if key == "" {
		key, _ = lookup("KEY")
	}
	if p.key = []byte(key); key == "" && p.target == targetGateway {
		fault("-key, or the variable KEY, must be the secret that the gateway has")
	}

	atLeast := func(name string, value, least int64) {
		if value < least {
			fault("%s is at least %d", name, least)
		}
	}
	atLeast("-users", int64(p.users), 1)
	atLeast("-connections-per-user", int64(p.perUser), 1)
	atLeast("-first-user", p.firstUser, 1)
	atLeast("-workers", int64(p.workers), 1)
	atLeast("-messages", messageCount, 0)
	atLeast("-window", int64(window), 0)
	atLeast("-concurrency", int64(p.concurrency), 0)
	if p.users > 0 && p.perUser > 0 && (p.users > 1<<24 || p.perUser > 1<<24 || p.users*p.perUser > 1<<24) {
		fault("-users and -connections-per-user: at most %d connections", 1<<24)
	}
	if p.firstUser > math.MaxInt64-int64(max(p.users, 0)) {
		fault("-first-user: the last user's id would be past %d", int64(math.MaxInt64))
	}
	if p.workers > p.users {
		fault("-workers: no more than users")
	}
	if messageCount > math.MaxUint32 {
		fault("-messages is at most %d", uint32(math.MaxUint32))
	}
	if p.bytes < minBytes || p.bytes > maxBytes {
		fault("-bytes is %d to %d", minBytes, maxBytes)
	}
	if p.target == targetAMQP && p.perUser > 1 {
		fault("-connections-per-user: the target amqp has one a user")
	}
	for name, value := range map[string]time.Duration{"-patience": p.patience, "-settle": p.settle, "-drain": p.drain} {
		if value < 0 {
			fault("%s is at least 0", name)
		}
	}
	if p.duration <= 0 {
		fault("-duration is more than 0")
	}
	if p.connectRate < 0 || math.IsNaN(p.connectRate) {
		fault("-connect-rate is at least 0")
	}
	if p.restart && (p.scenario != scenarioStorm || p.target != targetGateway) {
		fault("-restart belongs to the scenario storm with the target gateway")
	}
	switch rate {
	case "":
		p.rate = defaultRates[p.scenario]
	case rateFlood:
		if p.scenario == scenarioChurn {
			fault("-rate: churn needs a number")
		}
	default:
		n, err := strconv.ParseFloat(rate, 64)
		if err != nil || n <= 0 || math.IsInf(n, 0) {
			fault("-rate is a number over 0, or %s", rateFlood)
		}
		p.rate = n
	}
	var err error
	if p.sources, err = parseAddresses(sources); err != nil {
		fault("-source-addresses: %v", err)
	}
	if p.gatewayPIDs, err = parsePIDs(gatewayPIDs); err != nil {
		fault("-gateway-pid: %v", err)
	}
	if p.brokerPIDs, err = parsePIDs(brokerPIDs); err != nil {
		fault("-broker-pid: %v", err)
	}
	if len(faults) > 0 {
		slices.Sort(faults)
		fmt.Fprintf(messages, "chat-load: the command line is wrong:\n  %s\nchat-load -h explains.\n", strings.Join(faults, "\n  "))
		return plan{}, errUsage
	}

	p.messages, p.window = uint64(messageCount), uint64(window)
	if p.window == 0 {
		p.window = uint64(min(32*p.connections(), 1024))
	}
	if p.concurrency == 0 {
		p.concurrency = 128
		if p.scenario == scenarioStorm {
			p.concurrency = 1000
		}
	}
	if p.label == "" {
		p.label = p.target
	}
	return p, nil
}

// maxSources bounds a range of addresses.
const maxSources = 4096

// parseAddresses reads addresses and ranges of addresses.
func parseAddresses(text string) (all []netip.Addr, err error) {
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := netip.ParseAddr(first)
		if err != nil {
			return nil, fmt.Errorf("%q is no address", first)
		}
		to := from
		if isRange {
			if to, err = netip.ParseAddr(last); err != nil || to.Is4() != from.Is4() || to.Less(from) {
				return nil, fmt.Errorf("%q is no range", part)
			}
		}
		for it := from; ; it = it.Next() {
			if all = append(all, it); len(all) > maxSources {
				return nil, fmt.Errorf("more than %d addresses", maxSources)
			}
			if it == to {
				break
			}
		}
	}
	return all, nil
}

func parsePIDs(text string) (pids []int, err error) {
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		pid, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || pid < 1 {
			return nil, fmt.Errorf("%q is no process id", part)
		}
		if !exists(pid) {
			return nil, fmt.Errorf("there is no process %d", pid)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// processes finds who listens at the target and at the broker, unless the command line
// said; what can't be found is not measured.
func (p plan) processes() (gateway, broker measured) {
	gateway.pids, broker.pids = p.gatewayPIDs, p.brokerPIDs
	if len(gateway.pids) == 0 && p.target == targetGateway {
		for _, text := range p.urls {
			if at, err := parsePlace(text, p.insecure); err == nil {
				gateway.pids = appendListener(gateway.pids, at.address)
			}
		}
	}
	if len(broker.pids) == 0 && p.useBroker {
		if uri, err := amqp.ParseURI(p.broker.URL); err == nil {
			broker.pids = appendListener(broker.pids, net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)))
		}
	}
	return gateway, broker
}

func appendListener(pids []int, address string) []int {
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil || !resolved.IP.IsLoopback() {
		return pids
	}
	pid, err := listenerOn(uint16(resolved.Port))
	if err != nil || slices.Contains(pids, pid) {
		return pids
	}
	return append(pids, pid)
}
