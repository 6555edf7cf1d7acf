package rabbit

import (
	"errors"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// instanceQueue is the layout of ScopeInstance: one queue and consumer, and a binding
// for each user.
type instanceQueue struct {
	owner    *Inboxes
	session  *session
	pool     lanePool
	name     string
	consumer *consumerChannel
	running  sync.WaitGroup // the consumer channel's goroutine and the one that hands out

	// fences are for who wants to know that all has been handed out that the broker had
	// handed over by now; each is closed then. ended is closed when nothing more will be.
	fences chan chan struct{}
	ended  chan struct{}

	mu    sync.RWMutex
	users map[string]*bound // by routing key
}

// bound is the binding of one user. An inbox that is being closed and the next one of
// the same user may both be at it: they take turns, and the last one to open has it.
type bound struct {
	turn  chan struct{} // holds a token while someone binds or unbinds
	inbox *inbox        // nil while nobody has it; guarded by instanceQueue.mu
	users int           // who has it or waits for a turn; guarded by instanceQueue.mu
}

// newInstanceQueue makes the queue, and consumes it before anything is bound: an
// auto-delete queue goes with its last consumer, but not before there was one.
func (x *Inboxes) newInstanceQueue(s *session) (*instanceQueue, error) {
	q := &instanceQueue{
		owner:   x,
		session: s,
		pool:    newLanePool(s, x.config.WebsocketsExchange),
		name:    "websocket.instance." + x.instance + "." + strconv.FormatUint(x.sequence.Add(1), 10),
		users:   make(map[string]*bound),
		fences:  make(chan chan struct{}),
		ended:   make(chan struct{}),
	}
	consumer, err := openConsumerChannel(s, x.config.InstancePrefetch)
	if err != nil {
		return nil, err
	}
	q.consumer = consumer
	q.running.Go(consumer.run)
	var deliveries <-chan amqp.Delivery
	err = q.pool.with(s, nil, func(l *lane) error {
		channel, err := l.open()
		if err == nil {
			err = l.declareOn(channel, q.name, true) // it is consumed on another channel
		}
		if err == nil {
			deliveries, err = consumer.consume(q.name, false, func() {
				// The queue was deleted, and all bindings with it: everything is made anew.
				s.end(errors.New("the queue of the instance is gone"))
			})
		}
		return err
	})
	if err != nil {
		s.end(err)
		q.running.Wait()
		return nil, err
	}
	q.running.Go(func() { q.handOut(deliveries) })
	return q, nil
}

// fenceQuiet is for how long nothing must have come for a fence to believe that the
// library has passed on what the broker had handed over. The library holds messages in a
// buffer of its own, and nobody can look into it; from there they take microseconds.
const fenceQuiet = 2 * time.Millisecond

// handOut dispatches the deliveries, one after the other, until there are no more.
func (q *instanceQueue) handOut(deliveries <-chan amqp.Delivery) {
	defer close(q.ended)
	for {
		select {
		case d, open := <-deliveries:
			if !open {
				return
			}
			q.dispatch(&d)
		case fence := <-q.fences:
			fences := []chan struct{}{fence}
			for more := true; more; {
				select {
				case fence = <-q.fences:
					fences = append(fences, fence)
				default:
					more = false
				}
			}
			for _, d := range q.gather(deliveries) {
				q.dispatch(&d)
			}
			for _, fence := range fences {
				close(fence)
			}
		}
	}
}

// gather takes what the library holds, which the prefetch bounds.
func (q *instanceQueue) gather(deliveries <-chan amqp.Delivery) (held []amqp.Delivery) {
	quiet := time.NewTimer(fenceQuiet)
	defer quiet.Stop()
	for len(held) < q.owner.config.InstancePrefetch {
		var (
			d    amqp.Delivery
			open bool
		)
		select {
		case d, open = <-deliveries:
		case <-quiet.C:
			select { // both may have been there
			case d, open = <-deliveries:
			default:
			}
		}
		if !open {
			return held
		}
		held = append(held, d)
		quiet.Reset(fenceQuiet)
	}
	return held
}

// fence returns when all that the broker has handed over has been handed out.
func (q *instanceQueue) fence() {
	fence := make(chan struct{})
	select {
	case q.fences <- fence:
	case <-q.ended:
		return
	}
	select {
	case <-fence:
	case <-q.ended:
	}
}

// dispatch hands a delivery to the inbox of the user whose key it came under.
func (q *instanceQueue) dispatch(d *amqp.Delivery) {
	q.mu.RLock()
	var b *inbox
	if u := q.users[d.RoutingKey]; u != nil {
		b = u.inbox
	}
	q.mu.RUnlock()
	if b == nil {
		// It was published before the user's binding was gone.
		q.consumer.acker.Ack(d.DeliveryTag)
		return
	}
	b.hand(d, q.consumer.acker)
}

// enter waits for the turn at the user's binding, for as long as the session lasts and the
// turn is wanted.
func (q *instanceQueue) enter(key string, unwanted <-chan struct{}) (*bound, error) {
	q.mu.Lock()
	u := q.users[key]
	if u == nil {
		u = &bound{turn: make(chan struct{}, 1)}
		q.users[key] = u
	}
	u.users++
	q.mu.Unlock()
	select {
	case u.turn <- struct{}{}:
		return u, nil
	case <-unwanted:
		q.forget(key, u)
		return nil, errUnwanted
	case <-q.session.ended:
		q.forget(key, u)
		return nil, q.session.cause
	}
}

func (q *instanceQueue) leave(key string, u *bound) {
	<-u.turn
	q.forget(key, u)
}

func (q *instanceQueue) forget(key string, u *bound) {
	q.mu.Lock()
	defer q.mu.Unlock()
	u.users--
	if u.users == 0 && u.inbox == nil {
		delete(q.users, key)
	}
}

// set makes b the inbox of the binding and returns the one before.
func (q *instanceQueue) set(u *bound, b *inbox) *inbox {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := u.inbox
	u.inbox = b
	return before
}

// attach implements layout.
func (q *instanceQueue) attach(b *inbox, _ *seat) error {
	key := b.user.String()
	u, err := q.enter(key, b.closing)
	if err != nil {
		return err
	}
	defer q.leave(key, u)
	before := q.set(u, b) // first, so that nothing that comes is taken for nobody's
	err = q.pool.with(q.session, b.closing, func(l *lane) error { return l.bind(q.name, key) })
	if err != nil {
		q.set(u, before)
	}
	return err
}

// detach implements layout.
func (q *instanceQueue) detach(b *inbox, _ *seat) {
	key := b.user.String()
	u, err := q.enter(key, nil)
	if err != nil {
		return
	}
	defer q.leave(key, u)
	q.mu.RLock()
	mine := u.inbox == b
	q.mu.RUnlock()
	if !mine {
		return // the user has a newer inbox, whose binding it is now
	}
	err = q.pool.with(q.session, nil, func(l *lane) error { return l.unbind(q.name, key) })
	if err != nil && !q.session.over() {
		// A binding that stays would take messages for nobody: begin anew without it.
		q.session.end(err)
	}
	q.fence() // what came under the binding is still the inbox's
	q.set(u, nil)
}

// rebind implements layout. It takes the user's turn, since a binding that was made after
// detach has taken it away would stay; but it does not wait for the turn: who has it
// binds the user just now, or unbinds.
func (q *instanceQueue) rebind(b *inbox, _ *seat, l *lane) (func(), error) {
	key := b.user.String()
	u := q.tryEnter(key, b)
	if u == nil {
		return nil, nil
	}
	return func() { q.leave(key, u) }, l.bindAhead(q.name, key)
}

// tryEnter takes the turn at the user's binding if it is free and the binding b's, which
// it remains until leave; else it returns nil.
func (q *instanceQueue) tryEnter(key string, b *inbox) *bound {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.users[key]
	if u == nil || u.inbox != b {
		return nil
	}
	select {
	case u.turn <- struct{}{}:
		u.users++
		return u
	default:
		return nil
	}
}

// stop deletes the queue.
func (q *instanceQueue) stop() {
	q.consumer.cancel(q.name)
	_ = q.pool.with(q.session, nil, func(l *lane) error { return l.drop(q.name) })
}

// wait implements layout.
func (q *instanceQueue) wait() { q.running.Wait() }
