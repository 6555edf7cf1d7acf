package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// pollInterval is how often the run looks whether something has come to pass.
const pollInterval = 5 * time.Millisecond

// runner is a run under way.
type runner struct {
	plan    plan
	company *company
	peer    *peer // nil where the run needs none
	gateway measured
	broker  measured
	tool    measured
	report  *report
	stage   atomic.Pointer[string] // what the progress line says
	marks   map[string]moment
	joined  chan struct{} // connecting is over: worth a progress line

	looking sync.Mutex // guards latest
	latest  moment
}

// moment is what the processes had used at one time.
type moment struct {
	at      time.Time
	gateway usage
	broker  usage
	tool    usage
	known   [3]bool      // gateway, broker, tool
	gone    [3]bool      // the usage is that of the last time it was there
	seen    [3]time.Time // the last time it was there
}

// run does what the plan says. The error is for a run that could not be done at all;
// what went wrong during a run is in the report.
func run(ctx context.Context, p plan, progress io.Writer) (*report, error) {
	r := &runner{plan: p, report: newReport(p), marks: make(map[string]moment), joined: make(chan struct{}, 1)}
	r.enter("starting")
	if err := r.open(ctx); err != nil {
		return nil, errors.Join(err, r.close())
	}
	watching := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { r.watch(watching, progress) })
	err := r.perform(ctx)
	close(watching)
	watch.Wait()
	if err != nil {
		r.report.problem("%v", err)
	}
	r.report.Interrupted = ctx.Err() != nil
	if err := r.reconcile(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	if err := r.close(); err != nil {
		r.report.problem("%v", err)
	}
	r.report.conclude()
	return r.report, nil
}

// open gets everything ready to connect.
func (r *runner) open(ctx context.Context) (err error) {
	p := r.plan
	r.company = &company{shares: p.shares()}
	r.gateway, r.broker = p.processes()
	r.tool.pids = []int{os.Getpid()}
	if p.useBroker {
		if r.peer, err = newPeer(ctx, p); err != nil && !newReport(p).exchanging() && p.target == targetGateway {
			return fmt.Errorf("%w (-amqp none does without the broker)", err)
		} else if err != nil {
			return err
		}
		if p.scenario == scenarioInbound || p.scenario == scenarioRoundTrip {
			if err := r.peer.collect(ctx, p.scenario == scenarioRoundTrip); err != nil {
				return err
			}
		}
	}
	for _, share := range r.company.shares {
		// The floor stands for the gateway, so it must be a process of its own.
		if p.workers == 1 && p.target != targetAMQP {
			it, err := newCrew(ctx, p.crew(share))
			if err != nil {
				return err
			}
			r.company.crews = append(r.company.crews, it)
			continue
		}
		it, err := startWorker(ctx, p.crew(share))
		if err != nil {
			return err
		}
		r.company.crews = append(r.company.crews, it)
		if p.target == targetAMQP && len(p.gatewayPIDs) == 0 {
			r.gateway.pids = append(r.gateway.pids, it.pid())
		} else {
			r.tool.pids = append(r.tool.pids, it.pid())
		}
	}
	r.report.Gateway.PIDs, r.report.Broker.PIDs, r.report.Tool.PIDs = r.gateway.pids, r.broker.pids, r.tool.pids
	return nil
}

func (r *runner) close() error {
	r.enter("closing")
	err := r.company.Close()
	if r.peer != nil {
		r.peer.close()
	}
	return err
}

// enter names what the run does now.
func (r *runner) enter(stage string) { r.stage.Store(&stage) }

// mark measures the processes.
func (r *runner) mark(name string) moment {
	m := r.look()
	r.marks[name] = m
	return m
}

// look measures the processes now. Of one that has ended it returns what was seen last.
func (r *runner) look() moment {
	r.looking.Lock()
	defer r.looking.Unlock()
	last, m := r.latest, moment{at: time.Now()}
	for i, role := range []struct {
		measured measured
		now, was *usage
	}{{r.gateway, &m.gateway, &last.gateway}, {r.broker, &m.broker, &last.broker}, {r.tool, &m.tool, &last.tool}} {
		if *role.now, m.known[i] = role.measured.sample(); !m.known[i] && last.known[i] {
			*role.now, m.known[i], m.gone[i] = *role.was, true, true
		}
		if m.seen[i] = m.at; m.gone[i] {
			m.seen[i] = last.seen[i]
		}
	}
	r.latest = m
	return m
}

// Names of the moments that are measured.
const (
	markBefore    = "before connecting"
	markConnected = "connected"
	markBegin     = "begin"
	markEnd       = "end"
)

// perform connects and goes through the scenario.
func (r *runner) perform(ctx context.Context) error {
	p := r.plan
	r.enter("connecting")
	r.mark(markBefore)
	result, err := r.company.Connect(ctx, ConnectOrder{Concurrency: p.concurrency, Rate: p.connectRate, Patience: p.patience})
	r.report.Connect = newConnectReport(result)
	r.joined <- struct{}{}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if result.Connected == 0 {
		return errors.New("nobody could connect")
	}
	r.enter("settling")
	rest(ctx, p.settle)
	r.mark(markConnected)

	turnedAway := r.company.Progress().TurnedAway
	r.report.Connect.turnAway(turnedAway)
	defer func() {
		// What came too late to be counted above belongs to the last connects.
		later := r.company.Progress().TurnedAway - turnedAway
		if r.report.Reconnect != nil {
			r.report.Reconnect.turnAway(later)
		} else {
			r.report.Connect.turnAway(later)
		}
	}()

	begin := r.mark(markBegin)
	switch p.scenario {
	case scenarioIdle:
		r.enter(p.scenario)
		rest(ctx, p.duration)
	case scenarioDelivery:
		err = r.delivery(ctx, SendOrder{Rate: p.rate, Messages: p.messages, Duration: p.duration, Window: p.window})
	case scenarioInbound, scenarioRoundTrip:
		err = r.sending(ctx, SendOrder{Rate: p.rate, Messages: p.messages, Duration: p.duration, Window: p.window})
	case scenarioStorm:
		err = r.storm(ctx)
	case scenarioChurn:
		r.enter(p.scenario)
		var result ConnectResult
		result, err = r.company.Churn(ctx, ChurnOrder{Concurrency: p.concurrency, Rate: p.rate, Duration: p.duration})
		r.report.Reconnect = newConnectReport(result)
	}
	end := r.mark(markEnd)
	r.report.Seconds = end.at.Sub(begin.at).Seconds()
	if err != nil {
		return err
	}
	if r.peer != nil && !r.report.exchanging() && ctx.Err() == nil {
		// Every connection must still receive. Where messages have gone already, one more
		// would pass for one of those that are missing.
		r.report.checking = true
		if err := r.delivery(ctx, SendOrder{Messages: uint64(p.users), Duration: checkTimeout(p.users), Window: p.window}); err != nil {
			return err
		}
	}
	if r.peer != nil {
		return r.peer.failed()
	}
	return nil
}

// checkTimeout bounds the sending of one message to each user. It has nothing to do with
// -duration: a short run must be checked as fully as a long one.
func checkTimeout(users int) time.Duration {
	return 30*time.Second + time.Duration(users)*10*time.Millisecond
}

// rest waits, or until ctx ends.
func rest(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// delivery publishes for the users and waits for what comes.
func (r *runner) delivery(ctx context.Context, order SendOrder) error {
	r.enter("delivering")
	received := func() uint64 { return r.company.Progress().Received }
	began := time.Now()
	err := r.peer.deliver(ctx, order, received, func() int64 { return r.company.Progress().Connected })
	if !errors.Is(err, errNobody) { // else nothing more can come
		r.enter("draining")
		r.drain(received, func() uint64 { return r.peer.total.Load() * uint64(r.plan.perUser) })
	}
	r.report.span(began, r.company.Progress().LastArrive)
	return err
}

// sending makes the connections send and waits for what comes.
func (r *runner) sending(ctx context.Context, order SendOrder) error {
	r.enter("sending")
	settling := make(chan struct{})
	var settle sync.WaitGroup
	if order.Rate == 0 {
		settle.Go(func() { r.settle(settling) })
	}
	began := time.Now()
	err := r.company.Send(ctx, order)
	close(settling)
	settle.Wait()
	r.enter("draining")
	received := func() uint64 { return r.company.Progress().Received }
	if !r.echoes() {
		received = r.peer.counters.received.Load
	}
	r.drain(received, func() uint64 {
		now := r.company.Progress()
		return now.Sent - min(now.Sent, now.Refused)
	})
	last := r.company.Progress().LastArrive
	if !r.echoes() {
		last = r.peer.counters.lastArrive.Load()
	}
	r.report.span(began, last)
	return err
}

func (r *runner) echoes() bool { return r.plan.scenario == scenarioRoundTrip }

// settle tells the crews how much of what they sent has arrived, until stopped.
func (r *runner) settle(stop <-chan struct{}) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.company.settle(r.peer.arrivalsByCrew())
		case <-stop:
			return
		}
	}
}

// drain waits until all that is expected has been received, or nothing more comes.
func (r *runner) drain(received, expected func() uint64) {
	seen, when := received(), time.Now()
	for {
		now := received()
		if now >= expected() {
			return
		}
		if now != seen {
			seen, when = now, time.Now()
		} else if time.Since(when) >= r.plan.drain {
			return
		}
		rest(context.Background(), pollInterval)
	}
}

// await waits until done, at most a while, and reports whether it was done.
func (r *runner) await(atMost time.Duration, done func() bool) bool {
	until := time.Now().Add(atMost)
	for !done() {
		if time.Now().After(until) {
			return false
		}
		rest(context.Background(), pollInterval)
	}
	return true
}

// calm is how long no further connection ends before a restart counts as complete.
const calm = 3 * time.Second

// storm makes all connections go and come again.
func (r *runner) storm(ctx context.Context) error {
	p := r.plan
	began := time.Now()
	if p.restart {
		r.enter("waiting for the restart")
		full := r.company.Progress().Connected
		fewer := func() bool { return ctx.Err() != nil || r.company.Progress().Connected < full }
		if !r.await(p.duration, fewer) {
			return errors.New("the gateway was not restarted within -duration")
		}
		began = time.Now()
		seen, when := int64(-1), began
		for now := r.company.Progress().Connected; now > 0 && time.Since(when) < calm && ctx.Err() == nil; now = r.company.Progress().Connected {
			if now != seen {
				seen, when = now, time.Now()
			}
			rest(ctx, pollInterval)
		}
	} else {
		r.enter("cutting")
		if err := r.company.Drop(ctx); err != nil {
			return fmt.Errorf("cut the connections: %w", err)
		}
	}
	r.enter("storming")
	result, err := r.company.Connect(ctx, ConnectOrder{Concurrency: p.concurrency, Rate: p.connectRate, Patience: p.patience})
	result.Began = began
	r.report.Reconnect = newConnectReport(result)
	if err != nil {
		return fmt.Errorf("connect again: %w", err)
	}
	return nil
}

// reconcile closes the books.
func (r *runner) reconcile() error {
	var sent []uint32
	if r.peer != nil {
		sent = r.peer.sent
	}
	books, err := r.company.Reconcile(context.Background(), sent)
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	counts, latency := books.Tally, books.Latency
	var sentTotal uint64
	switch r.plan.scenario {
	case scenarioInbound:
		counts, latency = r.peer.reconcile(books.Outgoing), r.peer.latency.distribution()
		fallthrough
	case scenarioRoundTrip:
		for _, out := range books.Outgoing {
			sentTotal += uint64(out.Sent)
		}
	default:
		if r.peer != nil {
			sentTotal = r.peer.total.Load()
		}
	}
	foreign := books.Foreign
	if r.peer != nil {
		foreign += r.peer.foreign.Load()
	}
	r.report.book(books, counts, latency, sentTotal, foreign)
	r.report.measure(r.marks)
	return nil
}

// watch prints a line a second: over itself on a terminal, else every fifth one.
func (r *runner) watch(stop <-chan struct{}, out io.Writer) {
	file, ok := out.(*os.File)
	terminal := ok && isTerminal(file)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var last uint64
	seconds, stopped := 0, false
	for !stopped {
		due := false // a line, where there is no terminal
		select {
		case <-stop:
			if terminal {
				fmt.Fprint(out, "\r\x1b[K")
				return
			}
			select {
			case <-r.joined: // a run so short still gets its line
				due, stopped = true, true
			default:
				return
			}
		case <-r.joined:
			due = true
		case <-ticker.C:
			seconds++
			due = seconds%5 == 0
			r.look() // so that a process that ends leaves its usage
		}
		now := r.company.Progress()
		sent, received := now.Sent, now.Received
		if r.peer != nil {
			if r.plan.scenario == scenarioInbound {
				received = r.peer.counters.received.Load()
			}
			if !r.echoes() {
				sent += r.peer.total.Load()
			}
		}
		line := fmt.Sprintf("%-10s %d of %d connected, %d sent, %d received, %d refused, %d/s",
			*r.stage.Load(), now.Connected, r.plan.connections(), sent, received, now.Refused, received-min(last, received))
		last = received
		switch {
		case terminal:
			fmt.Fprintf(out, "\r\x1b[K%s", line)
		case due:
			fmt.Fprintln(out, line)
		}
	}
}

// isTerminal reports whether a file is a device such as a terminal.
func isTerminal(file *os.File) bool {
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
