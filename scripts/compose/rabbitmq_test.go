package compose

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rabbitmq/amqp091-go"
)

func TestDefinitions(t *testing.T) {
	b := theBroker(t)
	if got := b.list(t, "exchanges", "name", "type", "durable"); !slices.Contains(got, "database direct true") || !slices.Contains(got, "websockets direct true") {
		t.Errorf("exchanges: %q", got)
	}
	if got := b.list(t, "queues", "name", "durable", "policy"); !slices.Contains(got, "database.primary true database") {
		t.Errorf("queues: %q", got)
	}
	if got := b.list(t, "bindings", "source_name", "destination_name", "routing_key"); !slices.Contains(got, "database database.primary") {
		t.Errorf("bindings: %q", got)
	}
	policies := b.ctl(t, "list_policies", "--formatter", "json")
	var list []struct{ Name, Pattern, Definition string }
	if err := json.Unmarshal([]byte(policies), &list); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, policy := range list {
		found = found || policy.Pattern == `^websocket\.connection\.` && strings.Contains(policy.Definition, "drop-head")
	}
	if !found {
		t.Errorf("no policy for the users' queues: %s", policies)
	}
	env := exampleEnvironment(t)
	for _, kind := range []string{"", "BACKEND_", "ADMIN_"} {
		b.ctl(t, "authenticate_user", env["RABBITMQ_"+kind+"USER"], env["RABBITMQ_"+kind+"PASSWORD"])
	}
	users := b.list(t, "users")
	slices.Sort(users)
	if want := []string{"admin [administrator]", "backend []", "transportation []"}; !slices.Equal(users, want) {
		t.Errorf("users %q, want %q and no guest", users, want)
	}
}

// permissionsLine is the line of docs/operations.md that an operator copies.
func permissionsLine(t *testing.T) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^rabbitmqctl set_permissions .*$`).FindString(file(t, "docs/operations.md"))
	if line == "" {
		t.Fatal("docs/operations.md has no rabbitmqctl set_permissions line")
	}
	return line
}

// TestLeastPermissions gives the service's user what the documents say and nothing
// else, and has the service do all that it does.
func TestLeastPermissions(t *testing.T) {
	b := theBroker(t)
	ofDefinitions := b.list(t, "user_permissions", "transportation")
	b.ctl(t, "clear_permissions", "transportation")
	b.shell(t, permissionsLine(t))
	if got := b.list(t, "user_permissions", "transportation"); !slices.Equal(got, ofDefinitions) {
		t.Errorf("start.sh gives %q, the documents say %q", ofDefinitions, got)
	}
	for _, scope := range []string{"user", "instance"} {
		t.Run(scope, func(t *testing.T) {
			g := serve(t, "127.0.0.1:"+freePort(t), map[string]string{"RABBITMQ_URL": b.url(t, ""), "QUEUE_SCOPE": scope})
			conn := siteOf(g).connect(t, 7)
			backend := channel(t, b.url(t, "BACKEND_"))
			publish(t, backend, 7, `{"hello":"you"}`)
			if got := receive(t, conn); got != `{"hello":"you"}` {
				t.Errorf("delivered: %s", got)
			}
			send(t, conn, "m1", 8)
			eventually(t, "the message is in database.primary", func() bool {
				message, found, err := backend.Get("database.primary", true)
				if err != nil {
					t.Fatal(err)
				}
				return found && strings.Contains(string(message.Body), `"client_message_id":"m1"`)
			})
			prefix, policy := "websocket.connection.7", "websocket-connections"
			if scope == "instance" {
				prefix, policy = "websocket.instance.", "websocket-instances"
			}
			queues := b.list(t, "queues", "name", "policy")
			if !slices.ContainsFunc(queues, func(row string) bool {
				return strings.HasPrefix(row, prefix) && strings.HasSuffix(row, " "+policy)
			}) {
				t.Errorf("no queue %s… under the policy %s: %q", prefix, policy, queues)
			}
			if text := g.String(); strings.Contains(text, "ACCESS_REFUSED") {
				t.Errorf("the broker refused something:\n%s", text)
			}
		})
	}
	// And it is the least: neither can the user make queues of another name, nor read
	// what clients sent, nor speak to users.
	for what, do := range map[string]func(*amqp091.Channel) error{
		"declare": func(c *amqp091.Channel) error {
			_, err := c.QueueDeclare("other", false, false, true, false, nil)
			return err
		},
		"delete": func(c *amqp091.Channel) error {
			return c.ExchangeDelete("websockets", false, false)
		},
		"get": func(c *amqp091.Channel) error {
			_, _, err := c.Get("database.primary", true)
			return err
		},
		"publish": func(c *amqp091.Channel) error {
			closed := c.NotifyClose(make(chan *amqp091.Error, 1))
			if err := c.PublishWithContext(t.Context(), "websockets", "7", false, false, amqp091.Publishing{}); err != nil {
				return err
			}
			// An AMQP publish has no answer; a question after it has.
			if _, err := c.QueueDeclarePassive("database.primary", true, false, false, false, nil); err == nil {
				return nil
			}
			if reason := <-closed; reason != nil {
				return reason
			}
			return nil
		},
	} {
		err := do(channel(t, b.url(t, "")))
		if refused, is := err.(*amqp091.Error); !is || refused.Code != amqp091.AccessRefused {
			t.Errorf("%s: %v, want ACCESS_REFUSED", what, err)
		}
	}
}

// TestBackendOfProfileDemo has the stand-in answer, with its own user's permissions.
func TestBackendOfProfileDemo(t *testing.T) {
	b := theBroker(t)
	g := serve(t, "127.0.0.1:"+freePort(t), map[string]string{"RABBITMQ_URL": b.url(t, "")})
	backend := launch(t, t.TempDir(), map[string]string{"RABBITMQ_URL": b.url(t, "BACKEND_")}, binary, "backend")
	one, two := siteOf(g).connect(t, 1), siteOf(g).connect(t, 2)
	send(t, one, "m1", 2)
	if got := receive(t, two); !strings.Contains(got, `"client_message_id":"m1"`) {
		t.Errorf("user 2 got %s", got)
	}
	if text := backend.String(); strings.Contains(text, "ACCESS_REFUSED") {
		t.Errorf("the broker refused something:\n%s", text)
	}
}

// TestMemoryAlarmComesBeforeTheContainersLimit: the broker blocks publishers before the
// kernel kills it, however much memory the host has.
func TestMemoryAlarmComesBeforeTheContainersLimit(t *testing.T) {
	var broker struct {
		Watermark int64 `json:"vm_memory_high_watermark_limit"`
	}
	if err := json.Unmarshal([]byte(theBroker(t).ctl(t, "status", "--formatter", "json")), &broker); err != nil {
		t.Fatal(err)
	}
	p := load(t)
	number, found := strings.CutSuffix(p.Services["rabbitmq"].Deploy.Resources.Limits.Memory, "G")
	gigabytes, err := strconv.ParseInt(number, 10, 64)
	if !found || err != nil {
		t.Fatalf("the limit is not in G: %v", err)
	}
	limit := gigabytes << 30
	if broker.Watermark < limit/2 || broker.Watermark > limit*6/10 {
		t.Errorf("publishers are blocked at %d bytes, the container is killed at %d", broker.Watermark, limit)
	}
	// As root it could make a cookie that the server can't read.
	if check := strings.Join(p.Services["rabbitmq"].Healthcheck.Test, " "); strings.Count(check, "gosu rabbitmq rabbitmq-diagnostics ") != strings.Count(check, "rabbitmq-diagnostics ") {
		t.Errorf("the health check does not run as the server's user: %s", check)
	}
}

// TestPolicyLine types the set_policy line of docs/operations.md; it sets what the
// definitions have set.
func TestPolicyLine(t *testing.T) {
	b := theBroker(t)
	line := regexp.MustCompile(`(?m)^rabbitmqctl set_policy .*$`).FindString(file(t, "docs/operations.md"))
	before := b.list(t, "policies")
	b.ctl(t, "clear_policy", "websocket-connections")
	b.shell(t, line)
	if after := b.list(t, "policies"); !slices.Equal(after, before) {
		t.Errorf("the line sets\n%q\nthe definitions have\n%q", after, before)
	}
}
