package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/rabbitmq/amqp091-go"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// primary is the queue in which a messaging service keeps what clients say.
const primary = "database.primary"

// ledger knows what clients have said, what they were told, and what was stored.
type ledger struct {
	t *testing.T

	mu         sync.Mutex
	utterances map[string]*utterance // by client_message_id
	refusals   int
	unexpected []string // frames that answer nothing
	heard      map[address]bool
	waves      []int // how many of each wave of addresses have been heard
}

// address is a delivery for a user, in one of several waves.
type address struct {
	wave int
	user int64
}

// utterance is one message of a client.
type utterance struct {
	user, number int64
	id, body     string
	at           time.Time // before it was written to the socket
	refused      time.Time // zero where there was no error
	stored       int
}

func newLedger(t *testing.T) *ledger {
	return &ledger{t: t, utterances: make(map[string]*utterance), heard: make(map[address]bool)}
}

// say sends a message of the guest; only one goroutine may speak for a guest.
func (l *ledger) say(g *guest) error {
	l.mu.Lock()
	number := int64(len(l.utterances))
	u := &utterance{
		user: g.user, number: number, id: fmt.Sprintf("%d-%d", g.user, number),
		body: fmt.Sprintf("the %d. message, \"quoted\" <&> \u2028 😀", number), at: time.Now(),
	}
	l.utterances[u.id] = u
	l.mu.Unlock()
	frame, err := json.Marshal(map[string]any{
		"client_message_id": u.id, "chat_id": "general", "recipient_id": u.user + 1, "body": u.body, "sender_id": 999,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := g.conn.Write(ctx, websocket.MessageText, frame); err != nil {
		return fmt.Errorf("user %d says something: %w", g.user, err)
	}
	return nil
}

// everyone has each guest say something.
func (l *ledger) everyone(guests []*guest) {
	l.t.Helper()
	for _, g := range guests {
		if err := l.say(g); err != nil {
			l.t.Fatal(err)
		}
	}
}

// hear notes a frame that a guest has got.
func (l *ledger) hear(g *guest, frame []byte) {
	now := time.Now()
	var object struct {
		Title     string `json:"title"`
		InReplyTo string `json:"in_reply_to"`
		Wave      *int   `json:"wave"`
	}
	err := json.Unmarshal(frame, &object)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch u := l.utterances[object.InReplyTo]; {
	case err == nil && object.Wave != nil && !l.heard[address{*object.Wave, g.user}]:
		l.heard[address{*object.Wave, g.user}] = true
		l.waves[*object.Wave]++
	case err == nil && object.Title == "Delivery error." && u != nil && u.user == g.user && u.refused.IsZero():
		u.refused = now
		l.refusals++
	default:
		l.unexpected = append(l.unexpected, string(frame))
	}
}

// said and refused count.
func (l *ledger) said() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.utterances)
}

func (l *ledger) refused() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refusals
}

// refusedOf returns how many messages of a user were refused, and whether the last one
// was.
func (l *ledger) refusedOf(user int64) (count int, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	latest := int64(-1)
	for _, u := range l.utterances {
		if u.user != user {
			continue
		}
		if !u.refused.IsZero() {
			count++
		}
		if u.number > latest {
			latest, last = u.number, !u.refused.IsZero()
		}
	}
	return count, last
}

// settled reports whether the service knows what became of every message, and every
// error has been heard.
func (l *ledger) settled(p *instance) bool {
	accepted := p.metric(`websocket_messages_received_total{result="accepted"}`)
	failed := p.metric(`websocket_messages_received_total{result="failed"}`)
	return int(accepted)+int(failed) == l.said() && int(failed) == l.refused()
}

// slowest returns the longest time from saying something to hearing that it failed.
func (l *ledger) slowest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var longest time.Duration
	for _, u := range l.utterances {
		if !u.refused.IsZero() {
			longest = max(longest, u.refused.Sub(u.at))
		}
	}
	return longest
}

// inTime checks that every error came in time and that nothing else was heard.
func (l *ledger) inTime(confirm time.Duration) {
	l.t.Helper()
	if slowest, bound := l.slowest(), confirm+time.Second+schedulingAllowance; slowest > bound {
		l.t.Errorf("a Delivery error came %v after the message was sent; the bound is %v", slowest, bound)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.unexpected) > 0 {
		l.t.Errorf("%d frames answer nothing that was said, the first: %s", len(l.unexpected), l.unexpected[0])
	}
}

// reconcile takes what is in the queue and compares it with what was said.
func (l *ledger) reconcile(url string) (stored, duplicated, lost, both int) {
	l.t.Helper()
	bodies := takeAll(l.t, url, primary)
	l.mu.Lock()
	defer l.mu.Unlock()
	last := make(map[int64]int64)
	for _, message := range bodies {
		u := l.check(message)
		if u == nil {
			continue
		}
		u.stored++
		if u.stored == 1 && u.number < last[u.user] {
			l.t.Errorf("message %s is stored behind number %d of the same user", u.id, last[u.user])
		}
		last[u.user] = max(last[u.user], u.number)
	}
	for _, u := range l.utterances {
		switch {
		case u.stored == 0 && u.refused.IsZero():
			lost++
		case u.stored > 1:
			duplicated++
		}
		if u.stored > 0 && !u.refused.IsZero() {
			both++
		}
	}
	return len(bodies), duplicated, lost, both
}

// check compares a stored message with what was said, and returns that.
func (l *ledger) check(message amqp091.Delivery) *utterance {
	l.t.Helper()
	var stored struct {
		ID     string    `json:"client_message_id"`
		SentAt time.Time `json:"sent_at"`
	}
	if err := json.Unmarshal(message.Body, &stored); err != nil {
		l.t.Errorf("stored: %q: %v", message.Body, err)
		return nil
	}
	u := l.utterances[stored.ID]
	if u == nil {
		l.t.Errorf("nobody has said %s", message.Body)
		return nil
	}
	id, faultID := domain.NewClientMessageID(u.id)
	chat, faultChat := domain.NewChatID("general")
	sender, errSender := domain.NewUserID(u.user)
	recipient, errRecipient := domain.NewUserID(u.user + 1)
	if err := errors.Join(errSender, errRecipient); err != nil || faultID != nil || faultChat != nil {
		l.t.Fatal(err, faultID, faultChat)
	}
	want, err := app.AppendEntity(nil, domain.NewMessage(sender, id, chat, recipient, u.body, stored.SentAt))
	if err != nil {
		l.t.Fatal(err)
	}
	if !bytes.Equal(message.Body, want) || message.MessageId != u.id || message.DeliveryMode != amqp091.Persistent ||
		message.ContentType != "application/json" || message.ContentEncoding != "utf-8" {
		l.t.Errorf("stored as\n%s\nnot as\n%s\n(message id %q, delivery mode %d, content type %q, content encoding %q)",
			message.Body, want, message.MessageId, message.DeliveryMode, message.ContentType, message.ContentEncoding)
	}
	if early, late := u.at.Sub(stored.SentAt), stored.SentAt.Sub(u.at); early > time.Millisecond || late > 20*time.Second {
		l.t.Errorf("message %s was sent at %v and is stored with %v", u.id, u.at, stored.SentAt)
	}
	return u
}

// backendChannel returns a channel of a backend, in confirm mode.
func backendChannel(t *testing.T, url string) *amqp091.Channel {
	t.Helper()
	connection, err := amqp091.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	channel, err := connection.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return channel
}

// bindQueue makes a durable queue that keeps what clients say, where it is not there.
func bindQueue(t *testing.T, url, queue string) {
	t.Helper()
	channel := backendChannel(t, url)
	if err := channel.ExchangeDeclare("database", "direct", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := channel.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := channel.QueueBind(queue, "", "database", false, nil); err != nil {
		t.Fatal(err)
	}
}

// takeAll empties a queue that nobody publishes to any more.
func takeAll(t *testing.T, url, name string) []amqp091.Delivery {
	t.Helper()
	channel := backendChannel(t, url)
	queue, err := channel.QueueDeclarePassive(name, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	deliveries, err := channel.Consume(name, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]amqp091.Delivery, 0, queue.Messages)
	deadline := time.After(time.Minute)
	for len(all) < queue.Messages {
		select {
		case delivery, open := <-deliveries:
			if !open {
				t.Fatal("the connection was lost")
			}
			all = append(all, delivery)
		case <-deadline:
			t.Fatalf("of %d messages only %d came", queue.Messages, len(all))
		}
	}
	return all
}

// address publishes one message for each guest, and returns the number of the wave and
// how many of its messages went to no queue.
func (l *ledger) address(url string, guests []*guest) (wave, returned int) {
	t := l.t
	t.Helper()
	l.mu.Lock()
	wave = len(l.waves)
	l.waves = append(l.waves, 0)
	l.mu.Unlock()
	channel := backendChannel(t, url)
	returns := channel.NotifyReturn(make(chan amqp091.Return, len(guests)))
	confirms := make([]*amqp091.DeferredConfirmation, len(guests))
	for i, g := range guests {
		var err error
		confirms[i], err = channel.PublishWithDeferredConfirm("websockets", fmt.Sprint(g.user), true, false,
			amqp091.Publishing{Body: fmt.Appendf(nil, `{"wave": %d}`, wave)})
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, confirm := range confirms {
		if acked, err := confirm.WaitContext(ctx); err != nil || !acked {
			t.Fatalf("the broker did not take a message for a user: %v", err)
		}
	}
	return wave, len(returns)
}

// reachAll publishes one message for each guest; each must go to a queue and be heard.
func (l *ledger) reachAll(url string, guests []*guest) {
	l.t.Helper()
	wave, returned := l.address(url, guests)
	if returned > 0 {
		l.t.Errorf("%d of %d users have no queue", returned, len(guests))
	}
	awaited(l.t, time.Minute, "each user gets a message", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.waves[wave] == len(guests)
	})
}
