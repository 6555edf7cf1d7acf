package hub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

const (
	// joinTimeout bounds waiting for a user's inbox.
	joinTimeout = 5 * time.Second
	// leaveTimeout bounds the removal of a user's inbox; it goes on in the background.
	leaveTimeout = 5 * time.Second
	// retireTimeout bounds it where a drain waits for it with the close frame, nothing that
	// the broker has handed over is being written, and the broker removes no inboxes.
	retireTimeout = time.Second
)

// member is a user with connections on this instance. It implements app.Recipient.
type member struct {
	hub  *Hub
	user domain.UserID

	// refs counts the sessions of the user and those that are about to join or leave;
	// at zero the member is forgotten. giveUp is there while the inbox is being opened for
	// a client that has left, and others wait for it. Hub.mu guards both.
	refs   int
	giveUp context.CancelFunc

	// turn has one place, for whoever changes inbox: otherwise the last leave, racing
	// the first join, would remove the queue from under the new connection. It is a
	// channel so that waiting for it can be given up.
	turn  chan struct{}
	inbox app.Inbox // guarded by turn

	// received counts the deliveries that have been dealt with.
	received atomic.Int64

	mu       sync.Mutex
	sessions []*session
}

// enter returns the member for the user and a reference to it.
func (h *Hub) enter(user domain.UserID) *member {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.users[user]
	if m == nil {
		m = &member{hub: h, user: user, turn: make(chan struct{}, 1)}
		h.users[user] = m
	}
	m.refs++
	return m
}

// exit gives a reference back.
func (h *Hub) exit(m *member) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m.refs--
	switch {
	case m.refs == 0:
		delete(h.users, m.user)
	case m.refs == 1 && m.giveUp != nil:
		m.giveUp()
	}
}

// join makes the session one of its user's, with an inbox that receives. The error is
// app.ErrUserAtCapacity or wraps app.ErrBrokerUnavailable; the session is nobody's
// then. The end of ctx, which is the client's, ends waiting for other connections of
// the user, and the opening of the inbox unless others wait for that.
func (h *Hub) join(ctx context.Context, s *session) error {
	m := h.enter(s.user)
	deadline := time.Now().Add(joinTimeout)
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	select {
	case m.turn <- struct{}{}:
	case <-waiting.Done():
		h.exit(m)
		return fmt.Errorf("%w: wait for the user's other connections: %w", app.ErrBrokerUnavailable, waiting.Err())
	}
	if !m.add(s) {
		<-m.turn
		h.exit(m)
		return app.ErrUserAtCapacity
	}
	s.member = m
	if err := m.openInbox(ctx, deadline); err != nil {
		m.remove(s)
		<-m.turn
		h.exit(m)
		s.cut()
		s.dropAll(dropConnectionClosed)
		return err
	}
	<-m.turn
	if err := ctx.Err(); err != nil {
		s.cut() // first: nothing more is taken
		s.dropAll(dropConnectionClosed)
		h.leave(s)
		return fmt.Errorf("%w: the client has left: %w", app.ErrBrokerUnavailable, err)
	}
	return nil
}

// openInbox makes sure that the user's inbox is there. The caller has the turn. The end
// of client gives the opening up where nobody else waits for the turn: a broker that is
// slow, so that clients lose patience, has no time for inboxes that are not wanted. Who
// does wait keeps the place in line.
func (m *member) openInbox(client context.Context, deadline time.Time) error {
	if m.inbox != nil {
		return nil
	}
	h := m.hub
	opening, cancel := context.WithDeadline(context.Background(), deadline)
	stop := context.AfterFunc(client, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if m.refs == 1 {
			cancel()
		} else if opening.Err() == nil {
			m.giveUp = cancel
		}
	})
	inbox, err := h.inboxes.Open(opening, m.user, m.receive)
	stop()
	cancel() // from here on giveUp is set no more
	h.mu.Lock()
	m.giveUp = nil
	h.mu.Unlock()
	if err != nil {
		return fmt.Errorf("open the user's inbox: %w", err)
	}
	m.inbox = inbox
	h.meters.users.Inc()
	return nil
}

// leave takes the session from its user; the last one closes the inbox, which takes
// leaveTimeout at most, after a wait for those who are joining.
func (h *Hub) leave(s *session) {
	m := s.member
	m.remove(s)
	m.turn <- struct{}{}
	if m.size() == 0 {
		m.closeInbox(time.Now().Add(leaveTimeout))
	}
	<-m.turn
	h.exit(m)
}

// retire is for a session that a drain is about to close: where all of its user's other
// connections are about to be closed too, the inbox goes first, so that nothing is taken
// from the broker for a connection that is past its close frame. It returns when the
// inbox is gone, at the deadline, at the end of ctx, or when for the time of patience
// nothing has come of it and the broker has removed nobody's inbox: one that is slow has
// many to remove.
func (h *Hub) retire(ctx context.Context, s *session, patience time.Duration, deadline time.Time) {
	h.mu.Lock()
	m := h.users[s.user] // the session itself may be joining just now
	h.mu.Unlock()
	if m == nil || !m.retiring(s) {
		return
	}
	// The session waits for no longer than it may, whatever the broker does.
	retired := make(chan struct{})
	go func() {
		defer close(retired)
		m.turn <- struct{}{}
		m.closeInbox(deadline)
		<-m.turn
	}()
	progress := func() int64 { return m.received.Load() + h.removed.Load() }
	for seen, more := progress(), true; more; {
		timer := time.NewTimer(min(patience, time.Until(deadline)))
		select {
		case <-retired:
			more = false
		case <-ctx.Done():
			more = false
		case <-timer.C:
			last := seen
			seen = progress()
			more = seen > last && time.Now().Before(deadline)
		}
		timer.Stop()
	}
}

// closeInbox closes the inbox if there is one, in the background after the deadline.
// The caller has the turn.
func (m *member) closeInbox(deadline time.Time) {
	if m.inbox == nil {
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	if err := m.inbox.Close(ctx); err != nil {
		m.hub.log.Warn("a user's inbox is closed in the background", zap.Stringer("user", m.user), zap.Error(err))
	} else {
		m.hub.removed.Add(1)
	}
	m.inbox = nil
	m.hub.meters.users.Dec()
}

// add reports false where the user holds as many connections as one may.
func (m *member) add(s *session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if limit := m.hub.config.MaxConnectionsPerUser; limit > 0 && len(m.sessions) >= limit {
		return false
	}
	m.sessions = append(m.sessions, s)
	return true
}

func (m *member) remove(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.sessions, s); i >= 0 {
		m.sessions = slices.Delete(m.sessions, i, i+1)
	}
}

func (m *member) size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sessions)
}

// retiring notes that the session is about to be closed for good, and reports whether
// all of the user's are.
func (m *member) retiring(s *session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.retires = true
	return !slices.ContainsFunc(m.sessions, func(other *session) bool { return !other.retires })
}

// snapshot appends the user's sessions to dst.
func (m *member) snapshot(dst []*session) []*session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append(dst, m.sessions...)
}

// receive takes what a backend published for the user. The inbox calls it for one
// delivery after the other.
func (m *member) receive(d app.Delivery) {
	err := app.Deliver{}.Receive(m, d)
	m.received.Add(1)
	if err == nil {
		return
	}
	reason := dropInvalidBody
	if errors.Is(err, app.ErrControlBody) {
		reason = dropInvalidControl
	}
	m.hub.meters.dropped[reason].Inc()
	m.hub.dropLog.Do(func() {
		m.hub.log.Warn("a backend's message is dropped", zap.Stringer("user", m.user), zap.Int("bytes", len(d.Body)), zap.Error(err))
	})
}

// parcel is a delivery on its way to the connections of one user.
type parcel struct {
	delivery  app.Delivery
	unsettled *atomic.Int64 // Hub.unsettled
	pending   atomic.Int32
}

// done says that one connection has the delivery, or can't have it. The last one acks.
func (p *parcel) done() {
	if p.pending.Add(-1) == 0 {
		p.unsettled.Add(-1)
		p.delivery.Ack()
	}
}

// Deliver implements app.Recipient. Connections with room get the delivery first; then
// it waits for room on the others, WriteTimeout at most, unless it may not wait.
func (m *member) Deliver(d app.Delivery) {
	var space [8]*session // on the stack for nearly every user
	sessions := m.snapshot(space[:0])
	p := &parcel{delivery: d, unsettled: &m.hub.unsettled}
	m.hub.unsettled.Add(1)
	p.pending.Store(1) // until it has been offered to all
	defer p.done()
	if len(sessions) == 0 {
		m.hub.meters.dropped[dropNoConnection].Inc()
		return
	}
	full := sessions[:0]
	for _, s := range sessions {
		switch s.offer(p) {
		case offerRefused:
			m.hub.meters.dropped[dropConnectionClosed].Inc()
		case offerFull:
			if m.hub.config.CloseWhenFull {
				m.hub.meters.dropped[dropSlowConsumer].Inc()
				s.closeTooSlow()
			} else {
				full = append(full, s)
			}
		}
	}
	m.hub.relieve()
	if len(full) == 0 {
		return
	}
	deadline := time.Now().Add(m.hub.config.WriteTimeout)
	for _, s := range full {
		switch s.offerUntil(p, deadline) {
		case offerRefused:
			m.hub.meters.dropped[dropConnectionClosed].Inc()
		case offerFull:
			m.hub.meters.dropped[dropSlowConsumer].Inc()
			s.closeTooSlow()
		}
	}
}

// Disconnect implements app.Recipient.
func (m *member) Disconnect(reason string) {
	for _, s := range m.snapshot(nil) {
		s.close(app.CloseDisconnected, reason)
	}
}
