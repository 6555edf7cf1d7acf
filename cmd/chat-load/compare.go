package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// figure is one line of the table that compare prints.
type figure struct {
	name  string
	digit int // after the point
	of    func(*report) (float64, bool)
}

// sum adds up what the gateway and the broker have; a role that has no process of its
// own, like a plugin's, counts nothing.
func sum(r *report, of func(*processReport) (float64, bool)) (float64, bool) {
	total, known := 0.0, false
	for _, role := range []*processReport{r.Gateway, r.Broker} {
		if role == nil {
			continue
		}
		if value, ok := of(role); ok {
			total, known = total+value, true
		}
	}
	return total, known && r.Broker != nil && (r.Gateway != nil || r.Target == targetWebSTOMP)
}

func only(of func(*processReport) (float64, bool)) func(*report) (float64, bool) {
	return func(r *report) (float64, bool) {
		if r.Gateway == nil {
			return 0, false
		}
		return of(r.Gateway)
	}
}

func both(of func(*processReport) (float64, bool)) func(*report) (float64, bool) {
	return func(r *report) (float64, bool) { return sum(r, of) }
}

func per100k(p *processReport) (float64, bool) {
	if p.CPUPer100k == nil {
		return 0, false
	}
	return *p.CPUPer100k, true
}

func perConnection(p *processReport) (float64, bool) {
	return p.RSSPerConnection / 1024, p.RSSPerConnection > 0
}

// cpuPercent is not that of a process that ended: it may not have been seen at work.
func cpuPercent(p *processReport) (float64, bool) { return p.CPUPercent, !p.Gone }

func latencyFigure(name string, of func(*latencyReport) float64) figure {
	return figure{name, 2, func(r *report) (float64, bool) {
		if r.Latency == nil {
			return 0, false
		}
		return of(r.Latency), true
	}}
}

func connects(of func(*report) *connectReport) func(*report) (float64, bool) {
	return func(r *report) (float64, bool) {
		if c := of(r); c != nil && c.PerSecond > 0 {
			return c.PerSecond, true
		}
		return 0, false
	}
}

// figuresOf returns what there is to compare about runs of a scenario.
func figuresOf(scenario string) []figure {
	connect := figure{"connects/s", 0, connects(func(r *report) *connectReport { return r.Connect })}
	reconnect := figure{"connects/s", 0, connects(func(r *report) *connectReport { return r.Reconnect })}
	switch scenario {
	case scenarioIdle:
		return []figure{
			{"memory a connection, KB", 1, both(perConnection)},
			{"of which gateway, KB", 1, only(perConnection)},
			{"CPU, % of a core", 1, both(cpuPercent)},
			connect,
		}
	case scenarioStorm, scenarioChurn:
		return []figure{reconnect, {"CPU, % of a core", 1, both(cpuPercent)}}
	}
	return []figure{
		{"messages/s", 0, func(r *report) (float64, bool) {
			if r.Messages == nil {
				return 0, false
			}
			return r.Messages.PerSecond, true
		}},
		{"CPU s per 100,000", 2, both(per100k)},
		{"of which gateway", 2, only(per100k)},
		latencyFigure("p50, ms", func(l *latencyReport) float64 { return l.P50 }),
		latencyFigure("p99, ms", func(l *latencyReport) float64 { return l.P99 }),
	}
}

// series are the values of one figure and one label.
type series []float64

// median returns the middle value, or the mean of the two middle ones.
func (s series) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// group is the runs of one kind, by label.
type group struct {
	title string
	first *report
	runs  map[string][]*report
}

// title names a kind of run: runs with the same title are compared.
func title(r *report) string {
	load := ""
	if slices.Contains([]string{scenarioDelivery, scenarioInbound, scenarioRoundTrip}, r.Scenario) {
		if load = ", flood"; r.Rate > 0 {
			load = fmt.Sprintf(", %g/s", r.Rate)
		}
	}
	return fmt.Sprintf("%s%s, %d connections", r.Scenario, load, r.Connections)
}

const compareSynopsis = `chat-load compare prints one table of many runs: for each kind of run and each label
the median of the runs (and the least and the greatest value), in Markdown. It reads
what chat-load -json has printed, one run a line, from FILE or the standard input.

`

// compare prints the table and returns the exit code: 1 where a run was not ok.
func compare(arguments []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("chat-load compare", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, compareSynopsis)
		flags.PrintDefaults()
	}
	ratios := flags.String("ratios", "", "pairs of `labels` to print ratios of, such as gateway/webstomp,gateway/amqp")
	if err := flags.Parse(arguments); errors.Is(err, flag.ErrHelp) {
		return exitOK
	} else if err != nil {
		return exitUsage
	}
	var pairs [][2]string
	if *ratios != "" {
		for pair := range strings.SplitSeq(*ratios, ",") {
			over, under, ok := strings.Cut(strings.TrimSpace(pair), "/")
			if !ok {
				fmt.Fprintf(stderr, "chat-load compare: -ratios: %q is no pair\n", pair)
				return exitUsage
			}
			pairs = append(pairs, [2]string{over, under})
		}
	}
	if flags.NArg() > 1 {
		fmt.Fprintln(stderr, "chat-load compare: one FILE at most")
		return exitUsage
	}
	if flags.NArg() == 1 {
		file, err := os.Open(flags.Arg(0))
		if err != nil {
			fmt.Fprintln(stderr, "chat-load compare:", err)
			return exitFailed
		}
		defer func() { _ = file.Close() }()
		stdin = file
	}
	reports, err := readReports(stdin)
	if err != nil {
		fmt.Fprintln(stderr, "chat-load compare:", err)
		return exitFailed
	}
	fmt.Fprint(stdout, comparison(reports, pairs))
	for _, r := range reports {
		if !r.OK {
			return exitFailed
		}
	}
	return exitOK
}

func readReports(in io.Reader) (reports []*report, err error) {
	decoder := json.NewDecoder(in)
	for {
		r := new(report)
		if err := decoder.Decode(r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read the result of run %d: %w", len(reports)+1, err)
		}
		reports = append(reports, r)
	}
	if len(reports) == 0 {
		return nil, errors.New("there are no runs to compare")
	}
	return reports, nil
}

// comparison returns the table, with labels and kinds of run in the order in which they
// first come.
func comparison(reports []*report, pairs [][2]string) string {
	var labels []string
	var groups []*group
	byTitle := make(map[string]*group)
	for _, r := range reports {
		if !slices.Contains(labels, r.Label) {
			labels = append(labels, r.Label)
		}
		g := byTitle[title(r)]
		if g == nil {
			g = &group{title(r), r, make(map[string][]*report)}
			byTitle[g.title] = g
			groups = append(groups, g)
		}
		g.runs[r.Label] = append(g.runs[r.Label], r)
	}
	var out strings.Builder
	header := append([]string{"median (min–max)"}, labels...)
	for _, pair := range pairs {
		header = append(header, pair[0]+" / "+pair[1])
	}
	writeRow(&out, header)
	rule := make([]string, len(header))
	for i := range rule {
		rule[i] = "---"
	}
	writeRow(&out, rule)
	for _, g := range groups {
		for _, f := range figuresOf(g.first.Scenario) {
			all := make(map[string]series)
			for label, runs := range g.runs {
				for _, r := range runs {
					if value, ok := f.of(r); ok {
						all[label] = append(all[label], value)
					}
				}
			}
			if len(all) == 0 {
				continue
			}
			row := []string{g.title + ": " + f.name}
			for _, label := range labels {
				row = append(row, cell(all[label], f.digit))
			}
			for _, pair := range pairs {
				over, under := all[pair[0]], all[pair[1]]
				if len(over) == 0 || len(under) == 0 || under.median() == 0 {
					row = append(row, "–")
					continue
				}
				row = append(row, fmt.Sprintf("%.2f", over.median()/under.median()))
			}
			writeRow(&out, row)
		}
	}
	for _, r := range reports {
		if !r.OK {
			fmt.Fprintf(&out, "\nNOT OK: %s, %s: %s\n", title(r), r.Label, strings.Join(r.Problems, "; "))
		}
	}
	return out.String()
}

func cell(s series, digits int) string {
	if len(s) == 0 {
		return "–"
	}
	if len(s) == 1 {
		return fmt.Sprintf("%.*f", digits, s[0])
	}
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, s.median(), digits, slices.Min(s), digits, slices.Max(s))
}

func writeRow(out *strings.Builder, cells []string) {
	out.WriteString("| " + strings.Join(cells, " | ") + " |\n")
}
