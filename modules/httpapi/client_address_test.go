package httpapi

import (
	"net/netip"
	"strings"
	"testing"
)

func TestClientAddress(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	f := &front{proxies: proxies}
	for _, test := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"no proxy", "203.0.113.9:5000", nil, "203.0.113.9:5000"},
		{"forged by a client", "203.0.113.9:5000", []string{"198.51.100.1"}, "203.0.113.9:5000"},
		{"one proxy", "10.0.0.1:5000", []string{"198.51.100.1"}, "198.51.100.1:0"},
		{"forged through a proxy", "10.0.0.1:5000", []string{"127.0.0.1, 198.51.100.1"}, "198.51.100.1:0"},
		{"forged as a proxy", "10.0.0.1:5000", []string{"8.8.8.8, 10.9.9.9, 198.51.100.1"}, "198.51.100.1:0"},
		{"a chain of proxies", "10.0.0.1:5000", []string{"198.51.100.1, 10.0.0.3, 10.0.0.2"}, "198.51.100.1:0"},
		{"over several lines", "10.0.0.1:5000", []string{"8.8.8.8", "198.51.100.1,10.0.0.3", "10.0.0.2"}, "198.51.100.1:0"},
		{"proxies only", "10.0.0.1:5000", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3:0"},
		{"trusted, but no header", "10.0.0.1:5000", nil, "10.0.0.1:5000"},
		{"empty header", "10.0.0.1:5000", []string{""}, "10.0.0.1:5000"},
		{"empty elements", "10.0.0.1:5000", []string{" , 198.51.100.1 ,, ", ","}, "198.51.100.1:0"},
		{"with a port", "10.0.0.1:5000", []string{"198.51.100.1:4711"}, "198.51.100.1:4711"},
		{"tabs", "10.0.0.1:5000", []string{"8.8.8.8,\t198.51.100.1\t"}, "198.51.100.1:0"},
		{"IPv6", "10.0.0.1:5000", []string{"2001:db8::1"}, "[2001:db8::1]:0"},
		{"IPv6 in brackets", "10.0.0.1:5000", []string{"[2001:db8::1]"}, "[2001:db8::1]:0"},
		{"IPv6 with a port", "[fd00::5]:5000", []string{"[2001:db8::1]:4711"}, "[2001:db8::1]:4711"},
		{"IPv4 in IPv6", "[::ffff:10.0.0.1]:5000", []string{"::ffff:198.51.100.1"}, "198.51.100.1:0"},
		{"IPv4 in IPv6 from a client", "[::ffff:203.0.113.9]:5000", []string{"198.51.100.1"}, "203.0.113.9:5000"},
		{"unknown", "10.0.0.1:5000", []string{"198.51.100.1, unknown"}, "10.0.0.1:5000"},
		{"malformed behind a proxy", "10.0.0.1:5000", []string{"8.8.8.8, x, 10.0.0.2"}, "10.0.0.2:0"},
		{"a name", "10.0.0.1:5000", []string{"client.example.com"}, "10.0.0.1:5000"},
		{"a zone", "10.0.0.1:5000", []string{"fe80::1%eth0"}, "10.0.0.1:5000"},
		{"a zone with a port", "10.0.0.1:5000", []string{"[fe80::1%eth0]:80"}, "10.0.0.1:5000"},
		{"half a bracket", "10.0.0.1:5000", []string{"[2001:db8::1"}, "10.0.0.1:5000"},
		{"quoted", "10.0.0.1:5000", []string{`"198.51.100.1"`}, "10.0.0.1:5000"},
		{"leading zeros", "10.0.0.1:5000", []string{"198.051.100.001"}, "10.0.0.1:5000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := clientAddress(netip.MustParseAddrPort(test.peer), test.forwarded, f.trusted)
			if got.String() != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func FuzzClientAddress(f *testing.F) {
	f.Add("198.51.100.1, 10.0.0.2", "[2001:db8::1]:80")
	f.Add(",,unknown", "10.0.0.3")
	front := &front{proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	peer := netip.MustParseAddrPort("10.0.0.1:5000")
	f.Fuzz(func(t *testing.T, first, last string) {
		got := clientAddress(peer, []string{first, last}, front.trusted)
		if !got.IsValid() || got.Addr().Zone() != "" || got.Addr().Is4In6() {
			t.Fatalf("got %v", got)
		}
		if back, err := netip.ParseAddrPort(got.String()); err != nil || back != got {
			t.Fatalf("%v can't be read back: %v", got, err)
		}
		// An address that was not trusted can't add anything before itself.
		if !front.trusted(got.Addr()) {
			if again := clientAddress(peer, []string{"1.1.1.1, " + first, last}, front.trusted); again != got {
				t.Fatalf("%v became %v by an entry before it", got, again)
			}
		}
		// A peer that is not trusted is the client, whatever it says.
		stranger := netip.MustParseAddrPort("203.0.113.9:1")
		if got := clientAddress(stranger, []string{strings.ToUpper(first), last}, front.trusted); got != stranger {
			t.Fatalf("a stranger became %v", got)
		}
	})
}
