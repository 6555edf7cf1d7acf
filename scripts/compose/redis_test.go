package compose

import (
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// redisServer starts a Redis with the mounted configuration, as the command of
// compose.yaml does, on a port of its own; it returns the port.
func redisServer(t *testing.T) string {
	t.Helper()
	conf := file(t, "scripts/compose/redis/redis.conf")
	port := freePort(t)
	conf = replace(t, conf, "port 6379", "port "+port)
	conf = replace(t, conf, "bind * -::*", "bind 127.0.0.1")
	dir := t.TempDir()
	server := program(t, "redis-server")
	command := regexp.MustCompile(`exec (redis-server /etc/redis/redis\.conf .*)'\]`).FindStringSubmatch(file(t, "compose.yaml"))
	if command == nil {
		t.Fatal("compose.yaml does not start redis-server with redis.conf")
	}
	line := strings.Replace(command[1], "/etc/redis/redis.conf", write(t, dir, "redis.conf", conf), 1)
	line = strings.Replace(line, "redis-server", server, 1)
	line = strings.ReplaceAll(line, "$$", "$")
	launch(t, dir, map[string]string{"REDISCLI_AUTH": exampleEnvironment(t)["REDIS_PASSWORD"]}, "/bin/sh", "-c", "exec "+line)
	eventually(t, "Redis answers", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	return port
}

func redisURL(t *testing.T, port string) string {
	return "redis://:" + exampleEnvironment(t)["REDIS_PASSWORD"] + "@127.0.0.1:" + port + "/0"
}

func TestRedisConfiguration(t *testing.T) {
	port := redisServer(t)
	env := []string{"REDISCLI_AUTH=" + exampleEnvironment(t)["REDIS_PASSWORD"]}
	client := func(env []string, args ...string) string {
		t.Helper()
		output, err := run(t, t.TempDir(), env, program(t, "redis-cli"), append([]string{"-p", port}, args...)...)
		if err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		return strings.TrimSpace(output)
	}
	if got := client([]string{"REDISCLI_AUTH="}, "ping"); !strings.Contains(got, "NOAUTH") {
		t.Errorf("without a password: %s", got)
	}
	// The health check of compose.yaml.
	if got := client(env, "ping"); got != "PONG" {
		t.Errorf("with the password: %s", got)
	}
	for name, want := range map[string]string{"save": "", "appendonly": "no", "maxmemory-policy": "noeviction", "maxmemory": "67108864"} {
		if got := client(env, "config", "get", name); got != strings.TrimSpace(name+"\n"+want) {
			t.Errorf("%q, want %s %s", got, name, want)
		}
	}
}

// TestRedisACL types the ACL line of docs/operations.md and has the service use Redis
// as that user.
func TestRedisACL(t *testing.T) {
	line := regexp.MustCompile(`(?m)^redis-cli (ACL SETUSER .*)$`).FindStringSubmatch(file(t, "docs/operations.md"))
	if line == nil {
		t.Fatal("docs/operations.md has no redis-cli ACL SETUSER line")
	}
	port := redisServer(t)
	env := []string{"REDISCLI_AUTH=" + exampleEnvironment(t)["REDIS_PASSWORD"]}
	if output := mustRun(t, t.TempDir(), env, "/bin/sh", "-c", program(t, "redis-cli")+" -p "+port+" "+line[1]); strings.TrimSpace(output) != "OK" {
		t.Fatalf("%s: %s", line[0], output)
	}
	g := serve(t, "127.0.0.1:"+freePort(t), map[string]string{
		"RABBITMQ_URL": theBroker(t).url(t, ""),
		"REDIS_URL":    "redis://transportation:secret@127.0.0.1:" + port + "/0",
	})
	siteOf(g).connect(t, 3)
	if code := status("http://" + g.address + "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d", code)
	}
	if strings.Contains(g.String(), "NOPERM") {
		t.Errorf("Redis refused something:\n%s", g)
	}
}
