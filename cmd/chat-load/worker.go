package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"
)

// workerVariable, when set, makes the program a worker: it takes orders for one crew over
// its standard input and answers over its standard output, by net/rpc, until the input
// ends. Secrets go this way too, so they are in no list of processes.
const workerVariable = "CHAT_LOAD_WORKER"

// worker is the crew of a worker process, as net/rpc shows it.
type worker struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu   sync.Mutex
	crew crew
}

// Nothing is an argument or an answer that says nothing: gob has no empty structure.
type Nothing bool

// stdio is the standard input and output as one stream.
type stdio struct {
	io.ReadCloser
	io.Writer
}

// serveWorker takes orders until the input ends.
func serveWorker(in io.ReadCloser, out io.Writer) int {
	// Ctrl-C reaches every process of the terminal; the one in charge decides.
	signal.Ignore(os.Interrupt)
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{ctx: ctx, cancel: cancel}
	server := rpc.NewServer()
	if err := server.RegisterName("Worker", w); err != nil {
		fmt.Fprintln(os.Stderr, "chat-load worker:", err)
		return exitFailed
	}
	server.ServeConn(stdio{in, out})
	cancel()
	if it := w.current(); it != nil {
		_ = it.Close()
	}
	return exitOK
}

func (w *worker) current() crew {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.crew
}

var errNoCrew = errors.New("the worker has no crew")

// do runs an order.
func (w *worker) do(order func(crew) error) error {
	it := w.current()
	if it == nil {
		return errNoCrew
	}
	return order(it)
}

// Open makes the crew.
func (w *worker) Open(config CrewConfig, _ *Nothing) error {
	made, err := newCrew(w.ctx, config)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.crew = made
	return nil
}

// Connect is crew.Connect.
func (w *worker) Connect(order ConnectOrder, result *ConnectResult) error {
	return w.do(func(it crew) (err error) { *result, err = it.Connect(w.ctx, order); return err })
}

// Churn is crew.Churn.
func (w *worker) Churn(order ChurnOrder, result *ConnectResult) error {
	return w.do(func(it crew) (err error) { *result, err = it.Churn(w.ctx, order); return err })
}

// Drop is crew.Drop.
func (w *worker) Drop(Nothing, *Nothing) error {
	return w.do(func(it crew) error { return it.Drop(w.ctx) })
}

// Send is crew.Send.
func (w *worker) Send(order SendOrder, _ *Nothing) error {
	return w.do(func(it crew) error { return it.Send(w.ctx, order) })
}

// Sync is crew.Settle and crew.Progress.
func (w *worker) Sync(settled uint64, now *Progress) error {
	return w.do(func(it crew) error { it.Settle(settled); *now = it.Progress(); return nil })
}

// Reconcile is crew.Reconcile.
func (w *worker) Reconcile(sent []uint32, result *Outcome) error {
	return w.do(func(it crew) (err error) { *result, err = it.Reconcile(w.ctx, sent); return err })
}

// Interrupt ends the order that is under way, and all that follow.
func (w *worker) Interrupt(Nothing, *Nothing) error { w.cancel(); return nil }

// Close is crew.Close.
func (w *worker) Close(Nothing, *Nothing) error {
	return w.do(func(it crew) error {
		w.mu.Lock()
		w.crew = nil
		w.mu.Unlock()
		return it.Close()
	})
}

// How old the counts of a worker may be, while somebody looks at them and else: to be
// asked costs the worker CPU, which would show in what is measured.
const (
	syncInterval = 5 * time.Millisecond
	idleInterval = 250 * time.Millisecond
)

// remote is a crew in a worker process.
type remote struct {
	process *exec.Cmd
	client  *rpc.Client
	settled atomic.Uint64
	wanted  atomic.Bool // somebody has looked at the counts since they came
	stop    chan struct{}
	syncing sync.WaitGroup

	mu   sync.Mutex
	last Progress
}

// startWorker starts a worker process with a crew.
func startWorker(ctx context.Context, config CrewConfig) (*remote, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	process := exec.Command(program)
	process.Env = workerEnvironment(os.Environ(), config.Target)
	process.Stderr = os.Stderr
	in, err := process.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	out, err := process.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	if err := process.Start(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	r := &remote{process: process, client: rpc.NewClient(pipes{out, in}), stop: make(chan struct{})}
	r.syncing.Go(r.sync)
	if err := r.call(ctx, "Open", config, new(Nothing)); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// pipes are a worker's output and input as one stream.
type pipes struct {
	io.Reader
	io.WriteCloser
}

// pid returns the worker's process.
func (r *remote) pid() int { return r.process.Process.Pid }

// call gives an order and waits for what comes of it; when ctx ends it lets the worker
// end the order first.
func (r *remote) call(ctx context.Context, method string, argument, answer any) error {
	call := r.client.Go("Worker."+method, argument, answer, make(chan *rpc.Call, 1))
	interrupted := ctx.Done()
	for {
		select {
		case <-call.Done:
			if call.Error != nil {
				return fmt.Errorf("worker: %w", call.Error)
			}
			return nil
		case <-interrupted:
			interrupted = nil
			r.client.Go("Worker.Interrupt", Nothing(false), new(Nothing), make(chan *rpc.Call, 1))
		}
	}
}

// sync keeps the counts here and there up to date.
func (r *remote) sync() {
	timer := time.NewTimer(syncInterval)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-r.stop:
			return
		case <-timer.C:
		}
		if r.wanted.Swap(false) || time.Since(last) >= idleInterval {
			last = time.Now()
			r.refresh()
		}
		timer.Reset(syncInterval)
	}
}

// refresh gets the counts. It fails before the crew is there or when the process is
// gone; then the orders fail too, and say so.
func (r *remote) refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var now Progress
	if err := r.client.Call("Worker.Sync", r.settled.Load(), &now); err == nil {
		r.last = now
	}
}

// order is call for an order that changes the counts.
func (r *remote) order(ctx context.Context, method string, argument, answer any) error {
	err := r.call(ctx, method, argument, answer)
	r.refresh()
	return err
}

// Connect implements crew.
func (r *remote) Connect(ctx context.Context, order ConnectOrder) (result ConnectResult, err error) {
	err = r.order(ctx, "Connect", order, &result)
	return result, err
}

// Churn implements crew.
func (r *remote) Churn(ctx context.Context, order ChurnOrder) (result ConnectResult, err error) {
	err = r.order(ctx, "Churn", order, &result)
	return result, err
}

// Drop implements crew.
func (r *remote) Drop(ctx context.Context) error {
	return r.order(ctx, "Drop", Nothing(false), new(Nothing))
}

// Send implements crew.
func (r *remote) Send(ctx context.Context, order SendOrder) error {
	return r.order(ctx, "Send", order, new(Nothing))
}

// Settle implements crew.
func (r *remote) Settle(n uint64) {
	if r.settled.Swap(n) != n {
		r.wanted.Store(true)
	}
}

// Progress implements crew.
func (r *remote) Progress() Progress {
	r.wanted.Store(true)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// Reconcile implements crew.
func (r *remote) Reconcile(ctx context.Context, sent []uint32) (result Outcome, err error) {
	err = r.call(ctx, "Reconcile", sent, &result)
	return result, err
}

// workerEndTimeout bounds how long a worker may take to end.
const workerEndTimeout = 15 * time.Second

// Close implements crew, and ends the process.
func (r *remote) Close() error {
	kill := time.AfterFunc(workerEndTimeout, func() { _ = r.process.Process.Kill() })
	defer kill.Stop()
	closed := r.client.Call("Worker.Close", Nothing(false), new(Nothing))
	close(r.stop)
	r.syncing.Wait()
	_ = r.client.Close() // which ends the worker's input
	if err := r.process.Wait(); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	if closed != nil && closed.Error() != errNoCrew.Error() {
		return fmt.Errorf("worker: %w", closed)
	}
	return nil
}
