package compose

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// The tests of this file put the real nginx and the real HAProxy, with the mounted
// configuration or with the snippets of docs/operations.md, before real instances.

// fleet is several instances that share a broker and a store of passes.
type fleet struct {
	instances []*gateway
	port      string // of all, on addresses of their own
	adminPort string
}

// startFleet starts n instances on 127.0.0.1, 127.0.0.2 and so on, with the same port
// each, as containers have. A system that has but one loopback address gets one.
func startFleet(t *testing.T, n int, more map[string]string) *fleet {
	t.Helper()
	if runtime.GOOS != "linux" {
		n = 1
	}
	f := &fleet{port: freePort(t), adminPort: freePort(t)}
	env := map[string]string{
		"RABBITMQ_URL": theBroker(t).url(t, ""),
		"REDIS_URL":    redisURL(t, redisServer(t)),
		// Wide, as in compose.yaml, where Docker's gateway stands for the clients.
		"TRUSTED_PROXIES": "127.0.0.0/8",
		// Fast enough for a test, and in the relation of the defaults.
		"WS_PING_INTERVAL":         "2s",
		"PASS_REQUESTS_PER_MINUTE": "0",
	}
	for name, value := range more {
		env[name] = value
	}
	for i := range n {
		host := fmt.Sprintf("127.0.0.%d", i+1)
		env["ADMIN_ADDR"] = net.JoinHostPort(host, f.adminPort)
		f.instances = append(f.instances, serve(t, net.JoinHostPort(host, f.port), env))
	}
	return f
}

// logged reads what the instances have logged.
func (f *fleet) logged() string {
	var text strings.Builder
	for _, g := range f.instances {
		text.WriteString(g.String())
	}
	return text.String()
}

// unlessStalled runs a step. Where it fails because the machine stood still for so
// long that an instance took Redis to be away, which it then says, the step is run
// again: whether a pass is spent is then not known to anybody.
func (f *fleet) unlessStalled(t *testing.T, step func() error) {
	t.Helper()
	stalls := func() int { return strings.Count(f.logged(), "the pass store is unavailable") }
	for {
		before := stalls()
		err := step()
		if err == nil {
			return
		}
		if stalls() == before {
			t.Fatal(err)
		}
		eventually(t, "the instances have Redis again", func() bool {
			for _, g := range f.instances {
				select {
				case <-g.done:
					continue
				default:
				}
				if status("http://"+g.admin+"/readyz") == http.StatusServiceUnavailable && strings.Contains(g.String(), "shutting down") {
					continue
				}
				if status("http://"+g.admin+"/readyz") != http.StatusOK {
					return false
				}
			}
			return true
		})
	}
}

// checkProxy has clients go through a proxy: passes of one instance are used at
// another, messages go both ways, headers arrive, idle connections stay, an instance
// that is restarted is noticed by nobody, and no pass is in what the proxy logs. The
// users' ids are from first on.
func checkProxy(t *testing.T, s site, f *fleet, first int64, logged func() string) {
	t.Helper()
	var passes []string
	connect := func(s site, user int64) (*websocket.Conn, error) {
		pass, code := s.pass(t, token(t, user))
		if pass == "" {
			return nil, fmt.Errorf("no pass: status %d", code)
		}
		passes = append(passes, pass)
		conn, code, err := s.dial(t, pass)
		if err != nil {
			return nil, fmt.Errorf("no connection: status %d: %w", code, err)
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
		return conn, nil
	}
	launch(t, t.TempDir(), map[string]string{"RABBITMQ_URL": theBroker(t).url(t, "BACKEND_")}, binary, "backend")

	// A page of this very site: its Origin must be the Host that the service sees.
	page := s
	page.header = http.Header{"Origin": {s.base}, "X-Forwarded-For": {"203.0.113.7"}}
	var two *websocket.Conn
	f.unlessStalled(t, func() error {
		one, err := connect(page, first)
		if err != nil {
			return err
		}
		defer func() { _ = one.CloseNow() }()
		if two, err = connect(s, first+1); err != nil {
			return err
		}
		if err := trySend(t, one, "m1", first+1); err != nil {
			return err
		}
		got, err := tryReceive(t, two)
		if err == nil && !strings.Contains(got, `"client_message_id":"m1"`) {
			t.Errorf("the recipient got %s", got)
		}
		return err
	})
	foreign := s
	foreign.header = http.Header{"Origin": {"https://evil.example"}}
	f.unlessStalled(t, func() error {
		if _, err := connect(foreign, first); err == nil || !strings.Contains(err.Error(), "status 403") {
			return fmt.Errorf("a foreign page can connect: %w", err)
		}
		return nil
	})
	// The proxy's word about the client counts, not the client's own.
	eventually(t, "the log of an instance has the client's own address", func() bool {
		return strings.Contains(f.logged(), `"client":"`+clientHost()+`"`)
	})
	if strings.Contains(f.logged(), "203.0.113.7") {
		t.Error("a client can make up its address")
	}
	for _, path := range []string{"/metrics", "/readyz", "/healthz", "/debug/pprof/"} {
		if code := s.status(path); code == http.StatusOK {
			t.Errorf("%s is open to everybody", path)
		}
	}

	// Idle for longer than the proxy's time limit, here 5 s: the pings keep it open.
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	_, _, err := two.Read(ctx)
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an idle connection ended: %v", err)
	}

	// An instance goes: nobody who comes meanwhile is turned away.
	if len(f.instances) > 1 {
		leaving := f.instances[0]
		for i := range int64(4) { // with something to drain
			f.unlessStalled(t, func() error { _, err := connect(s, first+10+i); return err })
		}
		if err := leaving.command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for ended, user := false, first+100; !ended; user++ {
			select {
			case <-leaving.done:
				ended = true // and one more after that
			default:
			}
			f.unlessStalled(t, func() error {
				conn, err := connect(s, user)
				if err != nil {
					return fmt.Errorf("while an instance is restarted: %w", err)
				}
				return conn.CloseNow()
			})
		}
		if code := leaving.command.ProcessState.ExitCode(); code != 0 {
			t.Errorf("the instance that was to end gently: exit code %d", code)
		}
	}

	// All gone: now the proxy has something to complain about, with a pass that would
	// still be good.
	last, _ := s.pass(t, token(t, first))
	passes = append(passes, last)
	for _, g := range f.instances {
		g.stop(syscall.SIGKILL)
	}
	if _, code, err := s.dial(t, last); err == nil || code < 500 {
		t.Errorf("with no instance left: status %d, %v", code, err)
	}
	eventually(t, "the proxy has logged the failure", func() bool {
		return regexp.MustCompile(`"path":"/transportation/messages/","status":50[234]`).MatchString(logged())
	})
	text := logged()
	if !regexp.MustCompile(`"path":"/transportation/messages/","status":101`).MatchString(text) {
		t.Errorf("the proxy has logged no upgrade:\n%s", text)
	}
	for _, pass := range passes {
		if strings.Contains(text, pass) {
			t.Fatalf("the proxy has logged a pass:\n%s", text)
		}
	}
	if strings.Contains(text, "connection_pass") {
		t.Errorf("the proxy has logged a query string:\n%s", text)
	}
}

// status returns the status of a GET.
func (s site) status(path string) int {
	response, err := s.client.Get(s.base + path)
	if err != nil {
		return 0
	}
	defer func() { _ = response.Body.Close() }()
	return response.StatusCode
}

// checkTimeLimit: the proxy's limit for idle connections is above the time in which
// the service gives up a peer, two intervals of pings.
func checkTimeLimit(t *testing.T, limit string) {
	t.Helper()
	interval := 25 * time.Second // the default of WS_PING_INTERVAL
	if d, err := time.ParseDuration(limit); err != nil || d <= 2*interval {
		t.Errorf("idle connections are cut after %s, pings come every %s", limit, interval)
	}
}

func TestNginxOfProfileScale(t *testing.T) {
	t.Parallel()
	nginx := program(t, "nginx")
	dir := t.TempDir()
	conf := file(t, "scripts/compose/nginx/nginx.conf")
	for _, limit := range regexp.MustCompile(`proxy_(?:read|send)_timeout\s+(\S+);`).FindAllStringSubmatch(conf, -1) {
		checkTimeLimit(t, limit[1])
	}
	f := startFleet(t, 3, nil)
	var addresses []net.IP
	for _, g := range f.instances {
		host, _, err := net.SplitHostPort(g.address)
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, net.ParseIP(host).To4())
	}
	port := freePort(t)
	conf = replace(t, conf, "127.0.0.11 ", nameServer(t, "replica", addresses)+" ")
	conf = replace(t, conf, "replica:8001", "replica:"+f.port)
	conf = replace(t, conf, "listen 8080;", "listen 127.0.0.1:"+port+";")
	conf = replace(t, conf, "/tmp/", dir+"/")
	conf = replace(t, conf, "75s", "5s")
	path := write(t, dir, "nginx.conf", conf)
	mustRun(t, dir, nil, nginx, "-t", "-q", "-c", path)
	proxy := launch(t, dir, nil, nginx, "-c", path, "-g", "daemon off;")
	s := site{base: "http://127.0.0.1:" + port, client: newClient(t, nil)}
	eventually(t, "nginx answers", func() bool { return status(s.base+"/openapi.json") == http.StatusOK })
	checkProxy(t, s, f, 1000, proxy.String)
}

func TestNginxSnippet(t *testing.T) {
	t.Parallel()
	nginx := program(t, "nginx")
	dir := t.TempDir()
	f := startFleet(t, 2, nil)
	port := freePort(t)
	certificate := newCertificate(t, dir)
	conf := snippet(t, "nginx")
	for _, limit := range regexp.MustCompile(`proxy_(?:read|send)_timeout\s+(\S+);`).FindAllStringSubmatch(conf, -1) {
		checkTimeLimit(t, limit[1])
	}
	conf = replace(t, conf, "server 10.0.0.11:8001", "server "+f.instances[0].address)
	conf = replace(t, conf, "server 10.0.0.12:8001", "server "+f.instances[len(f.instances)-1].address)
	conf = replace(t, conf, "listen 443 ssl;", "listen 127.0.0.1:"+port+" ssl;")
	conf = replace(t, conf, "/etc/ssl/chat/fullchain.pem", certificate.chain)
	conf = replace(t, conf, "/etc/ssl/chat/privkey.pem", certificate.key)
	conf = replace(t, conf, "/var/log/nginx/chat.log", "/dev/stdout")
	conf = replace(t, conf, "/var/log/nginx/chat-error.log", "stderr")
	conf = replace(t, conf, "75s", "5s")
	path := write(t, dir, "nginx.conf", fmt.Sprintf(`
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 512; }
http {
    client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
%[2]s
}`, dir, conf))
	mustRun(t, dir, nil, nginx, "-t", "-q", "-c", path)
	proxy := launch(t, dir, nil, nginx, "-c", path, "-g", "daemon off;")
	s := site{base: "https://127.0.0.1:" + port, client: certificate.client}
	eventually(t, "nginx answers", func() bool {
		_, code := s.pass(t, "")
		return code == http.StatusUnauthorized
	})
	checkProxy(t, s, f, 2000, proxy.String)
}

func TestHAProxySnippet(t *testing.T) {
	t.Parallel()
	haproxy := program(t, "haproxy")
	dir := t.TempDir()
	f := startFleet(t, 2, nil)
	port := freePort(t)
	certificate := newCertificate(t, dir)
	conf := snippet(t, "haproxy")
	limit := regexp.MustCompile(`timeout tunnel (\S+)`).FindStringSubmatch(conf)
	if limit == nil {
		t.Fatal("HAProxy has no timeout tunnel")
	}
	checkTimeLimit(t, limit[1])
	conf = replace(t, conf, "10.0.0.11:8001", f.instances[0].address)
	conf = replace(t, conf, "10.0.0.12:8001", f.instances[len(f.instances)-1].address)
	conf = replace(t, conf, "check port 9001", "check port "+f.adminPort)
	conf = replace(t, conf, "bind :443 ", "bind 127.0.0.1:"+port+" ")
	conf = replace(t, conf, "/etc/haproxy/certs/chat.pem", certificate.bundle)
	conf = replace(t, conf, "maxconn 100000", "maxconn 200")
	conf = replace(t, conf, "tunnel "+limit[1], "tunnel 5s")
	path := write(t, dir, "haproxy.cfg", conf)
	mustRun(t, dir, nil, haproxy, "-c", "-f", path)
	proxy := launch(t, dir, nil, haproxy, "-db", "-f", path)
	s := site{base: "https://127.0.0.1:" + port, client: certificate.client}
	eventually(t, "HAProxy answers", func() bool {
		_, code := s.pass(t, "")
		return code == http.StatusUnauthorized
	})
	checkProxy(t, s, f, 3000, proxy.String)
}

// snippet returns a configuration of docs/operations.md.
func snippet(t *testing.T, name string) string {
	t.Helper()
	found := regexp.MustCompile("(?s)<!-- snippet: " + name + " -->\n```" + name + "\n(.*?)```\n").FindStringSubmatch(file(t, "docs/operations.md"))
	if found == nil {
		t.Fatalf("docs/operations.md has no snippet %s", name)
	}
	return found[1]
}

// certificate is a certificate for 127.0.0.1 and a client that trusts it.
type certificate struct {
	chain, key, bundle string // files
	client             *http.Client
}

func newCertificate(t *testing.T, dir string) certificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(chain)
	return certificate{
		chain:  write(t, dir, "chain.pem", string(chain)),
		key:    write(t, dir, "key.pem", string(key)),
		bundle: write(t, dir, "bundle.pem", string(chain)+string(key)),
		client: newClient(t, &tls.Config{RootCAs: pool}),
	}
}

// clientHost is the address that clients of proxies have: not the proxy's own, where the
// system has more than one for the loopback interface.
func clientHost() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	return "127.0.0.9"
}

// newClient returns a client whose connections come from clientHost.
func newClient(t *testing.T, config *tls.Config) *http.Client {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientHost())}}
	transport := &http.Transport{TLSClientConfig: config, DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// nameServer stands in for Docker's: it answers for one name with several addresses.
// It returns its own address.
func nameServer(t *testing.T, name string, addresses []net.IP) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer := dnsAnswer(buffer[:n], name, addresses); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return conn.LocalAddr().String()
}

// dnsAnswer answers a question for the IPv4 addresses of a name of one label (RFC
// 1035, section 4), or returns nil.
func dnsAnswer(question []byte, name string, addresses []net.IP) []byte {
	const header = 12
	asked := append([]byte{byte(len(name))}, name...)
	asked = append(asked, 0, 0, 1, 0, 1) // the root, type A, class IN
	if len(question) < header+len(asked) || string(question[header:header+len(asked)]) != string(asked) {
		return nil
	}
	answer := append([]byte{question[0], question[1], 0x81, 0x80, 0, 1, 0, byte(len(addresses)), 0, 0, 0, 0}, asked...)
	for _, address := range addresses {
		// The name by a pointer to the question's, type A, class IN, 5 s, 4 bytes.
		answer = append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4)
		answer = append(answer, address.To4()...)
	}
	return answer
}

// TestReplicasAreAskedOnTheirAdminListener: three files must agree on the port.
func TestReplicasAreAskedOnTheirAdminListener(t *testing.T) {
	compose := file(t, "compose.yaml")
	for _, want := range []string{"./scripts/compose/nginx/nginx.conf:/etc/nginx/nginx.conf:ro", "ADMIN_ADDR: :9001"} {
		if !strings.Contains(compose, want) {
			t.Errorf("compose.yaml has no %s", want)
		}
	}
	prometheus := file(t, "scripts/compose/prometheus/prometheus.yml")
	if !strings.Contains(prometheus, "port: 9001") {
		t.Error("Prometheus does not ask the replicas where ADMIN_ADDR is")
	}
	// Found by its name, a target would be forgotten when the container stops.
	if !strings.Contains(prometheus, "targets: [transportation:8001]") || strings.Contains(prometheus, "names: [transportation]") {
		t.Error("the instance that is always there is not a fixed target")
	}
}
