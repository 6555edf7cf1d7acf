// Package apptest holds one contract suite for each outbound port of app. Every
// implementation runs them: what stands in the comments of the ports is tested once,
// and holds for the real broker or store and for the one inside the process alike.
package apptest

import (
	"testing"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// patience is how long a suite waits for what must happen. It is generous, since it
// only costs time where a test fails.
const patience = 20 * time.Second

// Eventually waits until condition holds, and fails the test where it does not in time.
func Eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// stays fails the test where condition stops holding within a moment. It can miss a
// fault that shows late, but reports none that is not there.
func stays(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(150 * time.Millisecond)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if !condition() {
			t.Fatalf("no longer true: %s", what)
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return
		}
	}
}

// NewMessage returns a message sent now, or fails the test where the parts are not valid.
func NewMessage(t *testing.T, sender int64, id string, recipient int64, body string) domain.Message {
	t.Helper()
	clientMessageID, fault := domain.NewClientMessageID(id)
	if fault != nil {
		t.Fatal(fault)
	}
	chat, fault := domain.NewChatID("chat")
	if fault != nil {
		t.Fatal(fault)
	}
	return domain.NewMessage(NewUser(t, sender), clientMessageID, chat, NewUser(t, recipient), body, time.Now())
}

// NewUser returns the user id n, or fails the test where there is none.
func NewUser(t *testing.T, n int64) domain.UserID {
	t.Helper()
	user, err := domain.NewUserID(n)
	if err != nil {
		t.Fatal(err)
	}
	return user
}
