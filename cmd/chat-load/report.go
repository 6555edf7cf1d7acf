package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report is the result of a run, as -json prints it.
type report struct {
	Label       string  `json:"label"`
	Scenario    string  `json:"scenario"`
	Target      string  `json:"target"`
	Users       int     `json:"users"`
	Connections int     `json:"connections"`
	Workers     int     `json:"workers"`
	Bytes       int     `json:"message_bytes"`
	Rate        float64 `json:"rate"`    // asked for, per second; 0: flood
	Seconds     float64 `json:"seconds"` // that the scenario took
	Interrupted bool    `json:"interrupted"`
	OK          bool    `json:"ok"`
	// Problems say why OK is false, and what else is worth knowing.
	Problems  []string          `json:"problems"`
	Connect   *connectReport    `json:"connect,omitempty"`
	Reconnect *connectReport    `json:"reconnect,omitempty"`
	Messages  *messageReport    `json:"messages,omitempty"`
	Latency   *latencyReport    `json:"latency_ms,omitempty"`
	Gateway   *processReport    `json:"gateway,omitempty"`
	Broker    *processReport    `json:"broker,omitempty"`
	Tool      *processReport    `json:"tool,omitempty"`
	Closes    map[string]uint64 `json:"closes,omitempty"`   // by the other side, by code
	Refusals  map[string]uint64 `json:"refusals,omitempty"` // by reason

	restart  bool
	checking bool // one message is owed to each user
	began    time.Time
	ended    time.Time
}

// connectReport is what came of connecting many.
type connectReport struct {
	Connected uint64            `json:"connected"`
	Failed    uint64            `json:"failed"`
	Retries   uint64            `json:"retries"`
	Seconds   float64           `json:"seconds"`
	PerSecond float64           `json:"per_second"`
	Latency   *latencyReport    `json:"latency_ms,omitempty"`
	Faults    map[string]uint64 `json:"faults,omitempty"` // of attempts, by reason
}

// messageReport is the reconciliation.
type messageReport struct {
	Sent          uint64  `json:"sent"`
	Expected      uint64  `json:"expected"` // sent, once for each connection that should receive it
	Received      uint64  `json:"received"`
	Lost          uint64  `json:"lost"`
	Duplicated    uint64  `json:"duplicated"`
	Reordered     uint64  `json:"reordered"`
	Refused       uint64  `json:"refused"`
	RefusedStored uint64  `json:"refused_and_received"`
	Misrouted     uint64  `json:"misrouted"`
	Foreign       uint64  `json:"foreign"` // texts that are not of this run
	Seconds       float64 `json:"seconds"` // from the first sent to the last received
	PerSecond     float64 `json:"per_second"`
}

// latencyReport is a distribution, in milliseconds.
type latencyReport struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

// processReport is what one role's processes used.
type processReport struct {
	PIDs             []int    `json:"pids"`
	Gone             bool     `json:"gone"`         // it ended during the run: what it had used when last seen
	SeenSeconds      float64  `json:"seen_seconds"` // of the scenario, up to when it was last seen
	CPUSeconds       float64  `json:"cpu_seconds"`  // in that time
	CPUPercent       float64  `json:"cpu_percent"`  // of one core, in that time
	CPUPer100k       *float64 `json:"cpu_seconds_per_100k_messages,omitempty"`
	ConnectCPU       float64  `json:"connect_cpu_seconds"` // while connecting and settling
	RSSBefore        int64    `json:"rss_before"`          // bytes
	RSSConnected     int64    `json:"rss_connected"`
	RSSAfter         int64    `json:"rss_after"`
	RSSPerConnection float64  `json:"rss_per_connection,omitempty"` // bytes, of connecting; of idle only
}

func newReport(p plan) *report {
	return &report{
		Label: p.label, Scenario: p.scenario, Target: p.target, Users: p.users, Connections: p.connections(),
		Workers: p.workers, Bytes: p.bytes, Rate: p.rate, Problems: []string{}, restart: p.restart,
		Gateway: &processReport{}, Broker: &processReport{}, Tool: &processReport{},
	}
}

// problem adds a sentence for people; it makes the run a failed one.
func (r *report) problem(format string, values ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, values...))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// newLatencyReport returns nil where nothing was recorded.
func newLatencyReport(d distribution) *latencyReport {
	if d.count() == 0 {
		return nil
	}
	return &latencyReport{
		Mean: milliseconds(d.mean()), P50: milliseconds(d.quantile(0.5)), P90: milliseconds(d.quantile(0.9)),
		P99: milliseconds(d.quantile(0.99)), P999: milliseconds(d.quantile(0.999)), Max: milliseconds(time.Duration(d.Max)),
	}
}

func newConnectReport(result ConnectResult) *connectReport {
	c := &connectReport{
		Connected: result.Connected, Failed: result.Failed, Retries: result.Retries, Seconds: result.seconds(),
		Latency: newLatencyReport(result.Latency), Faults: result.Faults,
	}
	if c.Seconds > 0 {
		c.PerSecond = float64(c.Connected) / c.Seconds
	}
	return c
}

// turnAway takes off those that were accepted and closed at once.
func (c *connectReport) turnAway(n uint64) {
	n = min(n, c.Connected)
	if n == 0 {
		return
	}
	c.Connected -= n
	c.Failed += n
	if c.Faults == nil {
		c.Faults = make(map[string]uint64)
	}
	c.Faults[errTurnedAway.Error()] += n
	if c.Seconds > 0 {
		c.PerSecond = float64(c.Connected) / c.Seconds
	}
}

// span says between which times the messages went: to the last arrival, in ns since 1970.
func (r *report) span(began time.Time, last int64) {
	r.began, r.ended = began, time.Unix(0, last)
}

// book enters the reconciliation.
func (r *report) book(books Outcome, counts tally, latency distribution, sent, foreign uint64) {
	for code, n := range books.Closes {
		if r.Closes == nil {
			r.Closes = make(map[string]uint64)
		}
		r.Closes[strconv.Itoa(code)] += n
	}
	r.Refusals = books.Refusals
	if sent == 0 {
		return
	}
	m := &messageReport{
		Sent: sent, Expected: counts.Expected, Received: counts.Received, Lost: counts.Lost,
		Duplicated: counts.Duplicated, Reordered: counts.Reordered, Refused: counts.Refused,
		RefusedStored: counts.RefusedStored, Misrouted: books.Misrouted, Foreign: foreign,
	}
	if m.Seconds = max(0, r.ended.Sub(r.began).Seconds()); m.Seconds > 0 && m.Received > 0 {
		m.PerSecond = float64(m.Received) / m.Seconds
	}
	r.Messages, r.Latency = m, newLatencyReport(latency)
}

// measure enters what the processes used.
func (r *report) measure(marks map[string]moment) {
	before, connected, begin, end := marks[markBefore], marks[markConnected], marks[markBegin], marks[markEnd]
	roles := []struct {
		report **processReport
		of     func(moment) usage
	}{
		{&r.Gateway, func(m moment) usage { return m.gateway }},
		{&r.Broker, func(m moment) usage { return m.broker }},
		{&r.Tool, func(m moment) usage { return m.tool }},
	}
	for i, role := range roles {
		if !before.known[i] || !connected.known[i] || !begin.known[i] || !end.known[i] {
			*role.report = nil // not on this machine, or gone meanwhile
			continue
		}
		p := *role.report
		p.Gone, p.SeenSeconds = end.gone[i], r.Seconds
		if p.Gone {
			p.SeenSeconds = max(0, end.seen[i].Sub(begin.at).Seconds())
		}
		used := role.of(end).CPU - role.of(begin).CPU
		p.CPUSeconds = used.Seconds()
		if p.SeenSeconds > 0 {
			p.CPUPercent = 100 * p.CPUSeconds / p.SeenSeconds
		}
		// Of the messages, it can't be told which came before one was last seen.
		if r.exchanging() && r.Messages != nil && r.Messages.Received > 0 && !p.Gone {
			per100k := p.CPUSeconds * 1e5 / float64(r.Messages.Received)
			p.CPUPer100k = &per100k
		}
		p.ConnectCPU = (role.of(connected).CPU - role.of(before).CPU).Seconds()
		p.RSSBefore, p.RSSConnected, p.RSSAfter = role.of(before).RSS, role.of(connected).RSS, role.of(end).RSS
		// In a warm process what connecting adds drowns in what is freed meanwhile.
		if grown := p.RSSConnected - p.RSSBefore; r.Scenario == scenarioIdle && r.Connect != nil && r.Connect.Connected > 0 && grown > 0 && !connected.gone[i] {
			p.RSSPerConnection = float64(p.RSSConnected-p.RSSBefore) / float64(r.Connect.Connected)
		}
	}
}

// exchanging reports whether the scenario is about messages.
func (r *report) exchanging() bool {
	return slices.Contains([]string{scenarioDelivery, scenarioInbound, scenarioRoundTrip}, r.Scenario)
}

// conclude decides whether all went well.
func (r *report) conclude() {
	for _, c := range []*connectReport{r.Connect, r.Reconnect} {
		if c != nil && c.Failed > 0 && !r.Interrupted {
			r.problem("%d connects failed", c.Failed)
		}
	}
	var closed uint64
	for _, n := range r.Closes {
		closed += n
	}
	if closed > 0 && !r.restart {
		r.problem("the other side ended %d connections", closed)
	}
	if m := r.Messages; r.checking && !r.Interrupted && (m == nil || m.Sent < uint64(r.Users)) {
		var sent uint64
		if m != nil {
			sent = m.Sent
		}
		r.problem("only %d of %d users were sent the message that checks them", sent, r.Users)
	}
	if m := r.Messages; m != nil {
		for _, fault := range []struct {
			n    uint64
			what string
		}{
			{m.Lost, "lost"}, {m.Duplicated, "duplicated"}, {m.Reordered, "reordered"}, {m.Misrouted, "delivered to another user"},
		} {
			if fault.n > 0 {
				r.problem("%d messages were %s", fault.n, fault.what)
			}
		}
		if m.Received == 0 {
			r.problem("no message arrived")
		}
	} else if r.exchanging() && !r.Interrupted && len(r.Problems) == 0 {
		r.problem("no message was sent")
	}
	r.OK = len(r.Problems) == 0
}

func (r *report) writeJSON(out io.Writer) error { return json.NewEncoder(out).Encode(r) }

// writeTable prints the report for people.
func (r *report) writeTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, values ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, values...))
	}
	rate := ""
	if r.exchanging() {
		if rate = ", flood"; r.Rate > 0 {
			rate = fmt.Sprintf(", %g/s", r.Rate)
		}
		rate += fmt.Sprintf(", %d bytes", r.Bytes)
	}
	row("scenario", "%s, target %s: %d users, %d connections%s", r.Scenario, r.Target, r.Users, r.Connections, rate)
	if r.Interrupted {
		row("", "interrupted")
	}
	for _, it := range []struct {
		name string
		of   *connectReport
	}{{"connects", r.Connect}, {"connects again", r.Reconnect}} {
		if it.of == nil {
			continue
		}
		row(it.name, "%d in %.2f s, %.0f/s; %d failed, %d tries repeated", it.of.Connected, it.of.Seconds, it.of.PerSecond, it.of.Failed, it.of.Retries)
		rowLatency(row, "  each took", it.of.Latency)
		rowCounts(row, "  attempts failed", it.of.Faults)
	}
	if m := r.Messages; m != nil {
		row("messages", "%d sent, %d of %d received in %.2f s, %.0f/s", m.Sent, m.Received, m.Expected, m.Seconds, m.PerSecond)
		row("  lost", "%d", m.Lost)
		row("  duplicated", "%d", m.Duplicated)
		row("  reordered", "%d", m.Reordered)
		row("  refused", "%d, of which %d arrived all the same", m.Refused, m.RefusedStored)
		if m.Misrouted > 0 {
			row("  to another user", "%d", m.Misrouted)
		}
		if m.Foreign > 0 {
			row("  not of this run", "%d", m.Foreign)
		}
		rowCounts(row, "  refused because", r.Refusals)
		rowLatency(row, "  latency", r.Latency)
	}
	rowCounts(row, "ended by the other side", r.Closes)
	gateway := "gateway"
	if r.Target == targetAMQP {
		gateway = "floor"
	}
	for _, it := range []struct {
		name string
		of   *processReport
	}{{gateway, r.Gateway}, {"broker", r.Broker}, {"this program", r.Tool}} {
		if it.of == nil {
			row(it.name, "n/a")
			continue
		}
		per100k := ""
		if it.of.CPUPer100k != nil {
			per100k = fmt.Sprintf(", %.2f s per 100,000 messages", *it.of.CPUPer100k)
		}
		row(it.name+" CPU", "%.2f s, %.1f %% of a core%s; %.2f s while connecting", it.of.CPUSeconds, it.of.CPUPercent, per100k, it.of.ConnectCPU)
		perConnection := ""
		if it.of.RSSPerConnection > 0 {
			perConnection = fmt.Sprintf("; %.1f KB a connection", it.of.RSSPerConnection/1024)
		} else if r.Scenario == scenarioIdle {
			perConnection = "; n/a a connection"
		}
		row(it.name+" memory", "%s before, %s connected, %s after%s",
			megabytes(it.of.RSSBefore), megabytes(it.of.RSSConnected), megabytes(it.of.RSSAfter), perConnection)
		if it.of.Gone {
			row("", "it is gone: the figures are up to when it was last seen, after %.2f s", it.of.SeenSeconds)
		}
	}
	if r.OK {
		row("result", "ok")
	}
	for _, problem := range r.Problems {
		row("FAILED", "%s", problem)
	}
	return w.Flush()
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

func rowLatency(row func(string, string, ...any), name string, l *latencyReport) {
	if l != nil {
		row(name, "p50 %.2f ms, p90 %.2f, p99 %.2f, p99.9 %.2f, max %.2f", l.P50, l.P90, l.P99, l.P999, l.Max)
	}
}

func rowCounts(row func(string, string, ...any), name string, counts map[string]uint64) {
	if len(counts) == 0 {
		return
	}
	parts := make([]string, 0, len(counts))
	for _, why := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s: %d", why, counts[why]))
	}
	row(name, "%s", strings.Join(parts, "; "))
}
