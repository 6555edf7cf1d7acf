package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
)

// databasePrefetch is how many messages the stand-in may have and not have answered.
const databasePrefetch = 64

// Backend is the messaging service of demo mode: it consumes the queue of the
// in-process broker's database exchange and publishes what Messaging answers.
type Backend struct {
	broker    *Broker
	messaging *Messaging
	log       *zap.Logger
	inbox     *inbox // set by Start
}

// NewBackend returns the stand-in; it consumes from Start to Stop.
func NewBackend(broker *Broker, messaging *Messaging, log *zap.Logger) *Backend {
	return &Backend{broker: broker, messaging: messaging, log: log}
}

// Start binds the queue of the database exchange: from then on the messages of
// clients are taken. The broker must have been started.
func (b *Backend) Start(context.Context) error {
	if b.inbox != nil {
		return errors.New("the stand-in of the messaging service is started already")
	}
	q := newQueue("database", databaseQueueLimit, refuseNewest, databasePrefetch)
	to := binding{databaseExchange, ""}
	if err := b.broker.consume(q, to, b.answer); err != nil {
		return fmt.Errorf("start the stand-in of the messaging service: %w", err)
	}
	b.inbox = &inbox{broker: b.broker, queue: q, binding: to}
	return nil
}

// Stop ends consuming, within ctx and a second. What is still queued is
// lost, as everything is when a demo ends.
func (b *Backend) Stop(ctx context.Context) error {
	if b.inbox == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := b.inbox.Close(ctx)
	b.inbox = nil
	return err
}

func (b *Backend) answer(d app.Delivery) {
	replies, err := b.messaging.Answer(d.Body, time.Now())
	if err != nil {
		b.log.Warn("the stand-in of the messaging service dropped a message", zap.Error(err))
		d.Reject()
		return
	}
	for _, reply := range replies {
		// A recipient who is not connected gets nothing: nothing is stored here.
		b.broker.deliver(reply.RoutingKey, "", reply.Body)
	}
	d.Ack()
}
