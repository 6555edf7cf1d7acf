package app

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

// tokens knows its tokens by heart.
type tokens map[string]Grant

func (t tokens) Verify(token string) (Grant, error) {
	if grant, ok := t[token]; ok {
		return grant, nil
	}
	return Grant{}, ErrUnauthenticated
}

// passes is a PassStore that can be made to fail.
type passes struct {
	mu    sync.Mutex
	known map[domain.ConnectionPass]PassGrant
	away  error
	takes int
}

func (p *passes) Put(_ context.Context, pass domain.ConnectionPass, grant PassGrant) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away != nil {
		return p.away
	}
	if p.known == nil {
		p.known = make(map[domain.ConnectionPass]PassGrant)
	}
	p.known[pass] = grant
	return nil
}

func (p *passes) Take(_ context.Context, pass domain.ConnectionPass) (PassGrant, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takes++
	grant, ok := p.known[pass]
	if delete(p.known, pass); !ok {
		return PassGrant{}, ErrPassInvalid
	}
	return grant, nil
}

func (p *passes) Available() error            { return p.away }
func (p *passes) Check(context.Context) error { return p.away }

// side stands for the publisher's and the inboxes' availability.
type side struct {
	Publisher
	away error
}

func (s *side) Available() error { return s.away }

type inboxSide struct {
	Inboxes
	away error
}

func (s *inboxSide) Available() error { return s.away }

func user(t *testing.T, n int64) domain.UserID {
	t.Helper()
	id, err := domain.NewUserID(n)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// fixture is a Connect whose surroundings a test can break.
type fixture struct {
	passes    *passes
	publisher *side
	inboxes   *inboxSide
	connect   *Connect
}

func newFixture(limits ConnectLimits) *fixture {
	f := &fixture{passes: &passes{}, publisher: &side{}, inboxes: &inboxSide{}}
	f.connect = NewConnect(f.passes, f.publisher, f.inboxes, limits)
	return f
}

// pass issues a pass whose token is good for an hour.
func (f *fixture) pass(t *testing.T, token time.Duration) string {
	t.Helper()
	pass, err := domain.NewConnectionPass(32)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	grant := PassGrant{Grant{user(t, 1), now.Add(token)}, now.Add(30 * time.Second)}
	if err := f.passes.Put(t.Context(), pass, grant); err != nil {
		t.Fatal(err)
	}
	return pass.Reveal()
}

func TestAdmitJudgesInTheContractsOrder(t *testing.T) {
	// Each step breaks one thing more than the step after it: the error must be that of
	// the first broken thing in the contract's order, and the pass must be unspent
	// until the pass itself is judged.
	f := newFixture(ConnectLimits{MaxConnections: 1, ConnectsPerSecond: 1, PassFailuresPerMinute: 1})
	client := netip.MustParseAddr("192.0.2.1")
	var limited *RateLimitError

	admit := func(pass string, foreign bool) (*Admission, error) {
		return f.connect.Admit(t.Context(), Attempt{Pass: pass, Client: client, ForeignOrigin: foreign})
	}
	synctest.Test(t, func(t *testing.T) {
		first, err := admit(f.pass(t, time.Hour), false)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		pass := f.pass(t, time.Hour)
		f.passes.takes = 0

		f.connect.draining.Store(true)
		f.publisher.away, f.inboxes.away, f.passes.away = ErrBrokerUnavailable, ErrBrokerUnavailable, ErrPassStoreUnavailable
		if _, err = admit(pass, true); !errors.Is(err, ErrShuttingDown) {
			t.Errorf("draining: %v", err)
		}
		f.connect.draining.Store(false)
		if _, err = admit(pass, true); !errors.Is(err, ErrBrokerUnavailable) {
			t.Errorf("publisher away: %v", err)
		}
		f.publisher.away = nil
		if _, err = admit(pass, true); !errors.Is(err, ErrBrokerUnavailable) {
			t.Errorf("inboxes away: %v", err)
		}
		f.inboxes.away = nil
		if _, err = admit(pass, true); !errors.Is(err, ErrPassStoreUnavailable) {
			t.Errorf("store away: %v", err)
		}
		f.passes.away = nil
		if _, err = admit(pass, true); !errors.Is(err, ErrForeignOrigin) {
			t.Errorf("foreign origin: %v", err)
		}
		if _, err = admit(pass, true); !errors.As(err, &limited) || limited.RetryAfter < time.Second {
			t.Errorf("past the admission limit: %v", err)
		}
		if _, over := f.connect.Overloaded(); !over {
			t.Error("not overloaded although an attempt has just been refused")
		}
		time.Sleep(time.Second)
		if _, over := f.connect.Overloaded(); over {
			t.Error("overloaded a second after the last refusal")
		}
		if _, err = admit(pass, false); !errors.Is(err, ErrAtCapacity) {
			t.Errorf("at capacity: %v", err)
		}
		if f.passes.takes != 0 {
			t.Errorf("the pass was asked for %d times before it was its turn", f.passes.takes)
		}
		first.Release()
		first.Release() // a second release must not make room for two
		time.Sleep(time.Second)
		second, err := admit(pass, false)
		if err != nil {
			t.Fatalf("an unspent pass: %v", err)
		}
		second.Release()
		time.Sleep(time.Second)
		if _, err = admit(pass, false); !errors.Is(err, ErrPassInvalid) {
			t.Errorf("a spent pass: %v", err)
		}
		time.Sleep(time.Second)
		if _, err = admit(f.pass(t, time.Hour), true); !errors.As(err, &limited) {
			t.Errorf("past the limit of bad passes: %v", err)
		}
		if n := f.connect.admitted.Load(); n != 0 {
			t.Errorf("%d places are taken at the end", n)
		}
	})
}

// slowStore lets a test hold a Take.
type slowStore struct {
	passes
	held chan struct{}
}

func (s *slowStore) Take(ctx context.Context, pass domain.ConnectionPass) (PassGrant, error) {
	<-s.held
	return s.passes.Take(ctx, pass)
}

func TestAttemptsThatAreNotAdmittedKeepNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(ConnectLimits{MaxConnections: 1})
		store := &slowStore{held: make(chan struct{})}
		f.connect.passes = store
		good := f.pass(t, time.Hour)
		store.known = f.passes.known
		results := make(chan error, 2)
		for _, pass := range []string{strings.Repeat("x", 32), good} {
			go func() {
				_, err := f.connect.Admit(t.Context(), Attempt{Pass: pass})
				results <- err
			}()
			synctest.Wait()
		}
		close(store.held)
		first, second := <-results, <-results
		if first == nil {
			first, second = second, first
		}
		if !errors.Is(first, ErrPassInvalid) || second != nil {
			t.Errorf("the bad pass: %v, the good one: %v", first, second)
		}
	})
}

func TestLastPlaceGoesToOneAndTheOtherKeepsItsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(ConnectLimits{MaxConnections: 1})
		store := &slowStore{held: make(chan struct{})}
		f.connect.passes = store
		admitted, refused := make(chan *Admission, 2), make(chan error, 2)
		for range 2 {
			pass := f.pass(t, time.Hour)
			go func() {
				admission, err := f.connect.Admit(t.Context(), Attempt{Pass: pass})
				if err != nil {
					refused <- err
				} else {
					admitted <- admission
				}
			}()
		}
		store.known = f.passes.known
		synctest.Wait()
		close(store.held)
		winner := <-admitted
		if err := <-refused; !errors.Is(err, ErrAtCapacity) {
			t.Errorf("the other: %v", err)
		}
		if len(store.known) != 1 {
			t.Errorf("%d passes are still good, want the loser's", len(store.known))
		}
		winner.Release()
		if n := f.connect.admitted.Load(); n != 0 {
			t.Errorf("%d places are taken at the end", n)
		}
	})
}

func TestAdmitRefusesAnExpiredToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(ConnectLimits{})
		pass := f.pass(t, 5*time.Second)
		time.Sleep(5 * time.Second)
		if _, err := f.connect.Admit(t.Context(), Attempt{Pass: pass}); !errors.Is(err, ErrPassInvalid) {
			t.Errorf("the token has expired: %v", err)
		}
	})
}

func TestUnspendMakesThePassGoodAgain(t *testing.T) {
	f := newFixture(ConnectLimits{})
	pass := f.pass(t, time.Hour)
	for range 3 {
		admission, err := f.connect.Admit(t.Context(), Attempt{Pass: pass})
		if err != nil {
			t.Fatal(err)
		}
		if admission.User != user(t, 1) {
			t.Errorf("admitted user %s", admission.User)
		}
		if err := admission.Unspend(t.Context()); err != nil {
			t.Fatal(err)
		}
		admission.Release()
	}
}

func TestAddressBlock(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1":            "192.0.2.1",
		"::ffff:192.0.2.1":     "192.0.2.1",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::",
		"2001:db8:1:2::":       "2001:db8:1:2::",
	} {
		if got := addressBlock(netip.MustParseAddr(address)).String(); got != want {
			t.Errorf("addressBlock(%s) = %s, want %s", address, got, want)
		}
	}
	if got := addressBlock(netip.Addr{}); got.IsValid() {
		t.Errorf("the block of no address is %s", got)
	}
}

func TestIssuePass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(ConnectLimits{ConnectsPerSecond: 1})
		grant := Grant{user(t, 1), time.Now().Add(time.Hour)}
		issue := NewIssuePass(tokens{"one": grant, "two": {user(t, 2), grant.TokenExpiresAt}}, f.passes,
			PassPolicy{Length: 40, Lifetime: 30 * time.Second, RequestsPerMinute: 2}, f.connect)
		if _, err := issue.Issue(t.Context(), "forged"); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("a forged token: %v", err)
		}
		for range 2 {
			issued, err := issue.Issue(t.Context(), "one")
			if err != nil {
				t.Fatal(err)
			}
			want := PassGrant{grant, time.Now().Add(30 * time.Second)}
			if got := f.passes.known[issued.Pass]; got != want || len(issued.Pass.Reveal()) != 40 || issued.ExpiresIn != 30*time.Second {
				t.Errorf("issued %d characters for %+v", len(issued.Pass.Reveal()), got)
			}
		}
		var limited *RateLimitError
		if _, err := issue.Issue(t.Context(), "one"); !errors.As(err, &limited) || limited.RetryAfter != time.Minute {
			t.Errorf("past the user's limit: %v", err)
		}
		f.passes.away = ErrPassStoreUnavailable
		for range 5 { // more often than the user has passes: these are none
			if _, err := issue.Issue(t.Context(), "two"); !errors.Is(err, ErrPassStoreUnavailable) {
				t.Errorf("store away: %v", err)
			}
		}
		f.passes.away = nil
		for range 2 {
			if _, err := issue.Issue(t.Context(), "two"); err != nil {
				t.Errorf("store back: %v", err)
			}
		}
		time.Sleep(time.Minute)
		if _, err := issue.Issue(t.Context(), "one"); err != nil {
			t.Errorf("a minute later: %v", err)
		}
		for range 2 {
			_, _ = f.connect.Admit(t.Context(), Attempt{})
		}
		if _, err := issue.Issue(t.Context(), "one"); !errors.As(err, &limited) {
			t.Errorf("past the admission limit: %v", err)
		}
	})
}

func TestQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQuota[int](2, time.Minute)
		for key := range 3 {
			for i, want := range []bool{true, true, false} {
				if _, ok := q.Take(key); ok != want {
					t.Errorf("key %d, event %d: %t", key, i, ok)
				}
				time.Sleep(time.Second)
			}
			if wait, over := q.Exceeded(key); !over || wait != 57*time.Second {
				t.Errorf("key %d: exceeded %t for %s", key, over, wait)
			}
		}
		time.Sleep(2 * time.Minute)
		if _, ok := q.Take(7); !ok || len(q.counts) != 1 {
			t.Errorf("windows that are over are still known: %d", len(q.counts))
		}
		if _, over := NewQuota[int](0, time.Minute).Exceeded(1); over {
			t.Error("a limit of 0 is exceeded")
		}
	})
}

func TestQuotaIsBounded(t *testing.T) {
	q := NewQuota[int](1, time.Hour)
	for key := range maxQuotaKeys + 10 {
		q.Take(key)
	}
	if len(q.counts) > maxQuotaKeys {
		t.Errorf("%d keys are known", len(q.counts))
	}
}

// mailbox is a Recipient and an Acknowledger that remembers what it was told.
type mailbox struct {
	bodies   []string
	reason   string
	acked    []uint64
	rejected []uint64
}

func (m *mailbox) Deliver(d Delivery)       { m.bodies = append(m.bodies, string(d.Body)); d.Ack() }
func (m *mailbox) Disconnect(reason string) { m.reason = reason }
func (m *mailbox) Ack(tag uint64)           { m.acked = append(m.acked, tag) }
func (m *mailbox) Reject(tag uint64)        { m.rejected = append(m.rejected, tag) }

func TestDeliver(t *testing.T) {
	for _, c := range []struct {
		name, kind, body string
		err              error
		reason           string
	}{
		{name: "object", body: `{"a": [1, 2.5e3, "é", null]}`},
		{name: "scalar", body: `"x"`},
		{name: "another type", kind: "chat.message", body: `{}`},
		{name: "escaped lone surrogate is JSON", body: `"\ud800"`},
		{name: "empty", body: "", err: ErrDeliveryBody},
		{name: "not JSON", body: "{", err: ErrDeliveryBody},
		{name: "two values", body: "{}{}", err: ErrDeliveryBody},
		{name: "invalid UTF-8", body: "\"\xff\"", err: ErrDeliveryBody},
		{name: "disconnect", kind: ControlDisconnect, body: `{"reason":"banned"}`, reason: "banned"},
		{name: "disconnect, last reason counts", kind: ControlDisconnect, body: `{"reason":1,"Reason":"x","reason":"y"}`, reason: "y"},
		{name: "disconnect without reason", kind: ControlDisconnect, body: ` {} `, reason: "disconnected"},
		{name: "disconnect, reason of another type", kind: ControlDisconnect, body: `{"reason":{"a":1}}`, reason: "disconnected"},
		{name: "disconnect, long", kind: ControlDisconnect, body: `{"reason":"` + strings.Repeat("é", 100) + `"}`, reason: strings.Repeat("é", 60)},
		{name: "disconnect, cut within a character", kind: ControlDisconnect, body: `{"reason":"x` + strings.Repeat("é", 100) + `"}`, reason: "x" + strings.Repeat("é", 59)},
		{name: "disconnect, lone surrogate", kind: ControlDisconnect, body: `{"reason":"ok","x":"\ud800"}`, reason: "ok"},
		{name: "disconnect, lone surrogate as reason", kind: ControlDisconnect, body: `{"reason":"\ud800"}`, reason: "\ufffd"},
		{name: "disconnect, invalid UTF-8", kind: ControlDisconnect, body: "{\"reason\":\"\xff\"}", err: ErrControlBody},
		{name: "disconnect, array", kind: ControlDisconnect, body: `[]`, err: ErrControlBody},
		{name: "disconnect, null", kind: ControlDisconnect, body: `null`, err: ErrControlBody},
		{name: "disconnect, empty", kind: ControlDisconnect, body: ``, err: ErrControlBody},
		{name: "disconnect, cut", kind: ControlDisconnect, body: `{"reason":"a"`, err: ErrControlBody},
		{name: "disconnect, trailing", kind: ControlDisconnect, body: `{} x`, err: ErrControlBody},
	} {
		t.Run(c.name, func(t *testing.T) {
			var to mailbox
			err := Deliver{}.Receive(&to, Delivery{Body: []byte(c.body), Type: c.kind, Tag: 7, Acks: &to})
			if !errors.Is(err, c.err) || to.reason != c.reason {
				t.Errorf("error %v, reason %q; want %v, %q", err, to.reason, c.err, c.reason)
			}
			delivered := c.err == nil && c.kind != ControlDisconnect
			if delivered && (len(to.bodies) != 1 || to.bodies[0] != c.body) || !delivered && len(to.bodies) != 0 {
				t.Errorf("delivered %q", to.bodies)
			}
			if rejected := c.err != nil; rejected != (len(to.rejected) == 1) || rejected == (len(to.acked) == 1) {
				t.Errorf("acked %v, rejected %v", to.acked, to.rejected)
			}
		})
	}
}

func TestAppendEntity(t *testing.T) {
	id, _ := domain.NewClientMessageID("m\"1")
	chat, _ := domain.NewChatID("c\u2028")
	m := domain.NewMessage(user(t, 1), id, chat, user(t, 1<<63-1), "<b>\x00\n😀", time.Date(2026, 1, 2, 3, 4, 5, 600000000, time.UTC))
	got, err := AppendEntity([]byte("x"), m)
	if err != nil {
		t.Fatal(err)
	}
	want := `x{"id":null,"client_message_id":"m\"1","chat_id":"c` + "\u2028" + `","sender_id":1,"recipient_id":9223372036854775807,` +
		`"status":"sent","sent_at":"2026-01-02T03:04:05.600000Z","delivered_at":null,"body":"<b>\u0000\n😀","is_edited":false,"is_deleted":false}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !json.Valid(got[1:]) {
		t.Error("the entity is not JSON")
	}
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := Check{"pass_store", func(ctx context.Context) error { <-ctx.Done(); return errors.New("no answer") }}
		fine := Check{"broker", func(context.Context) error { return nil }}
		report, ready := NewReadiness([]Check{fine, hangs}).Report(t.Context())
		if ready || report["broker"] != "ok" || report["pass_store"] != "no answer" {
			t.Errorf("ready %t: %v", ready, report)
		}
		if report, ready = NewReadiness([]Check{fine}).Report(t.Context()); !ready || len(report) != 1 {
			t.Errorf("ready %t: %v", ready, report)
		}
	})
}

func TestCloseCodes(t *testing.T) {
	seen := make(map[CloseCode]bool)
	for _, row := range CloseCodes {
		if seen[row.Code] || row.When == "" || row.Client == "" || len(row.Reason) > 123 {
			t.Errorf("row %+v is twice there, incomplete or too long", row)
		}
		seen[row.Code] = true
	}
}
