package httpapi

import (
	"net/netip"
	"slices"
	"strings"
)

// clientAddress returns where a request comes from: peer, or, as far as each hop is
// trusted, what it says in X-Forwarded-For about the one before it. Each proxy appends
// the peer it sees, so the list is read from its end; what stands before the first
// address that is not trusted can be forged by that one. An entry that is no address
// ends the walk at the hop that wrote it. The port is 0 where it is not known.
func clientAddress(peer netip.AddrPort, forwarded []string, trusted func(netip.Addr) bool) netip.AddrPort {
	client := netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	for _, line := range slices.Backward(forwarded) {
		for _, entry := range slices.Backward(strings.Split(line, ",")) {
			entry = strings.Trim(entry, " \t")
			if entry == "" {
				// RFC 9110, section 5.6.1.2: empty elements of a list do not count.
				continue
			}
			if !trusted(client.Addr()) {
				return client
			}
			next, ok := parseForwarded(entry)
			if !ok {
				return client
			}
			client = next
		}
	}
	return client
}

// parseForwarded reads an address, possibly in brackets or with a port.
func parseForwarded(entry string) (netip.AddrPort, bool) {
	address, err := netip.ParseAddr(entry)
	if err != nil {
		if inner, found := strings.CutPrefix(entry, "["); found {
			if inner, found = strings.CutSuffix(inner, "]"); found {
				address, err = netip.ParseAddr(inner)
			}
		}
	}
	if err == nil {
		return netip.AddrPortFrom(address.Unmap(), 0), address.Zone() == ""
	}
	withPort, err := netip.ParseAddrPort(entry)
	if err != nil || withPort.Addr().Zone() != "" {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(withPort.Addr().Unmap(), withPort.Port()), true
}

// addressOf returns the address of "address:port", or nothing.
func addressOf(remote string) string {
	parsed, err := netip.ParseAddrPort(remote)
	if err != nil {
		return ""
	}
	return parsed.Addr().String()
}
