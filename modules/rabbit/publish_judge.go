package rabbit

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// judge settles what the writer has published, and what has come to its deadline, until
// the writer has ended. It alone knows what is in flight.
//
// Returned messages: the broker sends basic.return before the basic.ack of the same
// message, on the same channel (RabbitMQ docs, "Publisher Confirms: When Will Published
// Messages Be Confirmed by the Broker"), and the library's one reader passes both on in
// that order. So once a confirm is seen, the return that belongs to it is in e.returns
// at the latest, and looking there first makes the verdict certain.
type judge struct {
	*publishEpoch

	flight []*outgoing
	// early are the returns that overtook their message on the way through the
	// channels from the writer and from the library.
	early [][]byte

	// The channels listened on; nil once they have nothing more to say.
	sent     chan *outgoing
	returns  chan amqp.Return
	blocking chan amqp.Blocking
	over     chan struct{}
}

func (e *publishEpoch) judge() {
	j := &judge{publishEpoch: e, sent: e.sent, returns: e.returns, blocking: e.blocking, over: e.over}
	// Looks for messages that were confirmed before the oldest one; runs only while
	// something is in flight.
	overtaken := time.NewTimer(time.Hour)
	defer overtaken.Stop()
	for j.sent != nil {
		var oldest <-chan struct{}
		if len(j.flight) > 0 {
			oldest = j.flight[0].confirmation.Done()
		}
		select {
		case item, open := <-j.sent:
			if len(j.flight) == 0 {
				overtaken.Reset(overtakenEvery)
			}
			j.register(item, open)
		case returned, open := <-j.returns:
			j.match(returned, open)
		case state, open := <-j.blocking:
			j.block(state, open)
		case <-oldest:
			j.collect(false)
		case <-overtaken.C:
			j.collect(true)
			if len(j.flight) > 0 {
				overtaken.Reset(overtakenEvery)
			}
		case item := <-e.expired:
			j.expire(item)
		case <-j.over:
			j.over = nil
			j.collect(true)
			j.giveUp()
		}
	}
	j.collect(true)
	j.giveUp()
}

// register notes what the writer has published.
func (j *judge) register(item *outgoing, open bool) {
	if !open {
		j.sent = nil
		return
	}
	item.inFlight = true
	j.flight = append(j.flight, item)
	if i := slices.IndexFunc(j.early, func(body []byte) bool {
		return item.mandatory && bytes.Equal(body, item.publishing.Body)
	}); i >= 0 {
		item.returned = true
		j.early = slices.Delete(j.early, i, i+1)
	}
	if j.over == nil {
		j.collect(true)
		j.giveUp()
	}
}

// match marks the message that a return belongs to. A return has no delivery tag, but
// returns come in the order of publishing and carry the body: of equal bodies the first
// one not yet returned is meant, and mixing them up would change nothing, since they
// share sender, client message id and moment.
func (j *judge) match(returned amqp.Return, open bool) {
	if !open {
		j.returns = nil
		return
	}
	for _, item := range j.flight {
		if !item.returned && item.mandatory && bytes.Equal(item.publishing.Body, returned.Body) {
			item.returned = true
			return
		}
	}
	if len(j.early) == publishWindow {
		j.early = slices.Delete(j.early, 0, 1)
	}
	j.early = append(j.early, returned.Body)
}

// block notes whether the broker takes messages (connection.blocked, a RabbitMQ
// extension). Probes need not wait for more.
func (j *judge) block(state amqp.Blocking, open bool) {
	if !open {
		j.blocking = nil
		return
	}
	j.blocked.Store(state.Active)
	if !state.Active {
		j.publisher.log.Info("the broker takes messages again")
		return
	}
	j.publisher.log.Warn("the broker takes no messages", zap.String("reason", state.Reason))
	for _, item := range j.flight {
		if !item.mandatory {
			item.settle("", app.ErrBrokerBlocked)
		}
	}
}

// listen takes in what the library has already passed on: see judge about the order.
func (j *judge) listen() {
	for {
		select {
		case state, open := <-j.blocking:
			j.block(state, open)
		case returned, open := <-j.returns:
			j.match(returned, open)
		default:
			return
		}
	}
}

// collect settles the messages that have been confirmed: those at the front, or all.
func (j *judge) collect(all bool) {
	// Which are confirmed is looked up before the returns are taken in: a return that
	// comes later belongs to a later confirm.
	var confirmed []*outgoing
	front := 0
	for i, item := range j.flight {
		if isClosed(item.confirmation.Done()) {
			confirmed = append(confirmed, item)
			if front == i {
				front++
			}
		} else if !all {
			break
		}
	}
	if len(confirmed) == 0 {
		return
	}
	j.listen()
	if front == len(confirmed) {
		clear(j.flight[:front])
		j.flight = j.flight[front:]
	} else {
		for _, item := range confirmed {
			item.inFlight = false
		}
		j.flight = slices.DeleteFunc(j.flight, func(item *outgoing) bool { return !item.inFlight })
	}
	for _, item := range confirmed {
		<-j.window
		j.letGo(item)
		j.decide(item)
	}
}

// decide settles a message whose confirm has come, or whose channel has been closed.
func (j *judge) decide(item *outgoing) {
	switch {
	case item.confirmation.Acked():
		j.confirmed.Store(clock())
		j.session.heardAnswer()
		if item.mandatory {
			j.publisher.writesRefused.Store(false)
		}
		if item.returned {
			item.settle(resultReturned, app.ErrUnroutable)
		} else {
			item.settle(resultConfirmed, nil)
		}
	case item.channel == j.probing && !j.channel.IsClosed():
		j.probes() // notes why
		item.settle("", errProbeRefused)
	case j.channel.IsClosed():
		// The library nacks everything when the channel ends.
		item.settle(resultLost, fmt.Errorf("%w: the connection was lost", app.ErrBrokerUnavailable))
	default:
		item.settle(resultNacked, app.ErrNotAcknowledged)
	}
}

// expire settles an item that has come to its deadline, in flight or still queued. In
// flight it keeps its place, so that its return can't be taken for another's.
func (j *judge) expire(item *outgoing) {
	for drained := j.sent == nil; !drained; {
		select {
		case sent, open := <-j.sent:
			j.register(sent, open)
			drained = !open
		default:
			drained = true
		}
	}
	j.collect(true)
	if item.done.Load() {
		return
	}
	item.settle(resultTimeout, app.ErrConfirmTimeout)
	// Nothing has come since, not even a heartbeat: the connection is dead, whatever
	// TCP says. A blocked broker goes on with its heartbeats.
	patience := j.session.conn.Config.Heartbeat
	if patience == 0 {
		patience = heartbeat
	}
	heard := j.session.wire.heard()
	if heard.Before(item.handed) && time.Since(heard) >= patience && !j.blocked.Load() {
		j.session.end(fmt.Errorf("nothing has come from the broker for %v", time.Since(heard).Round(time.Millisecond)))
	}
}

// giveUp fails everything in flight: the connection is lost.
func (j *judge) giveUp() {
	for _, item := range j.flight {
		<-j.window
		j.letGo(item)
		item.settle(resultLost, fmt.Errorf("%w: the connection was lost", app.ErrBrokerUnavailable))
	}
	j.flight = nil
}
