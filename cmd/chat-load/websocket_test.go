package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// frames remembers what a reader hands out.
type frames struct {
	all  []string
	stop error
}

func (f *frames) message(payload []byte) error {
	f.all = append(f.all, "message "+string(payload))
	return f.stop
}

func (f *frames) control(opcode byte, payload []byte) error {
	f.all = append(f.all, fmt.Sprintf("control %x %s", opcode, payload))
	return f.stop
}

// serverFrame returns a frame as a server sends it.
func serverFrame(first byte, payload string) []byte {
	frame := []byte{first}
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, 126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 127), uint64(n))
	}
	return append(frame, payload...)
}

func TestFramesComeOutHoweverTheyAreCut(t *testing.T) {
	long, longer := strings.Repeat("x", 300), strings.Repeat("y", 70_000)
	stream := bytes.Join([][]byte{
		serverFrame(0x81, "one"),
		serverFrame(0x81, ""),
		serverFrame(0x89, "ping"),
		serverFrame(0x81, long),
		serverFrame(0x01, "a"), serverFrame(0x8a, "pong"), serverFrame(0x00, "b"), serverFrame(0x80, "c"),
		serverFrame(0x02, ""), serverFrame(0x80, ""),
		serverFrame(0x82, longer),
		serverFrame(0x88, "\x03\xe8bye"),
	}, nil)
	want := []string{
		"message one", "message ", "control 9 ping", "message " + long, "control a pong", "message abc", "message ",
		"message " + longer, "control 8 \x03\xe8bye",
	}
	for _, size := range []int{1, 2, 3, 7, 512, 4096, len(stream)} {
		var reader frameReader
		var got frames
		for rest := stream; len(rest) > 0; {
			n := min(size, len(rest))
			chunk := append([]byte(nil), rest[:n]...)
			if err := reader.feed(chunk, &got); err != nil {
				t.Fatalf("chunks of %d: %v", size, err)
			}
			clear(chunk) // a reader keeps nothing of a chunk
			rest = rest[n:]
		}
		if !reflect.DeepEqual(got.all, want) {
			t.Errorf("chunks of %d: %d frames, want %d", size, len(got.all), len(want))
		}
		if reader.partial != nil || reader.fragments != nil {
			t.Errorf("chunks of %d: the reader keeps %d and %d bytes at rest", size, len(reader.partial), len(reader.fragments))
		}
	}
}

func TestForbiddenFrames(t *testing.T) {
	for name, stream := range map[string][]byte{
		"reserved bits":          serverFrame(0xc1, "x"),
		"masked":                 {0x81, 0x81, 1, 2, 3, 4, 'x'},
		"fragmented ping":        serverFrame(0x09, "x"),
		"long ping":              serverFrame(0x89, strings.Repeat("x", 126)),
		"opcode 3":               serverFrame(0x83, "x"),
		"opcode b":               serverFrame(0x8b, "x"),
		"continuation first":     serverFrame(0x80, "x"),
		"text within a message":  append(serverFrame(0x01, "x"), serverFrame(0x81, "y")...),
		"a long length of 125":   {0x81, 126, 0, 125},
		"a longer one of 65535":  {0x81, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff},
		"a message too long":     {0x82, 127, 0, 0, 0, 0, 0, 0x10, 0, 1},
		"a length with the sign": {0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		var reader frameReader
		if err := reader.feed(stream, &frames{}); !errors.Is(err, errFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stop := errors.New("stop")
	got := frames{stop: stop}
	var reader frameReader
	if err := reader.feed(append(serverFrame(0x81, "x"), serverFrame(0x81, "y")...), &got); !errors.Is(err, stop) || len(got.all) != 1 {
		t.Errorf("a handler's error gave %v after %q", err, got.all)
	}
}

// unmask reads one client frame, by RFC 6455 section 5.2.
func unmask(t *testing.T, frame []byte) (first byte, payload []byte) {
	t.Helper()
	if frame[1]&0x80 == 0 {
		t.Fatal("a client's frame is not masked")
	}
	at, n := 2, int(frame[1]&0x7f)
	switch n {
	case 126:
		at, n = 4, int(binary.BigEndian.Uint16(frame[2:]))
	case 127:
		at, n = 10, int(binary.BigEndian.Uint64(frame[2:]))
	}
	key := frame[at : at+4]
	payload = append([]byte(nil), frame[at+4:]...)
	if len(payload) != n {
		t.Fatalf("%d bytes of payload, the header says %d", len(payload), n)
	}
	for i := range payload {
		payload[i] ^= key[i%4]
	}
	return frame[0], payload
}

func TestClientFrames(t *testing.T) {
	keys := make(map[string]bool)
	for _, n := range []int{0, 1, 7, 8, 9, 125, 126, 65535, 65536} {
		want := bytes.Repeat([]byte("chat"), n/4+1)[:n]
		frame := appendFrame([]byte("before"), opText, want)
		if !bytes.HasPrefix(frame, []byte("before")) {
			t.Fatal("what was there is gone")
		}
		first, got := unmask(t, frame[6:])
		if first != 0x81 || !bytes.Equal(got, want) {
			t.Errorf("a text of %d bytes became %x and %d bytes", n, first, len(got))
		}
		keys[string(frame[len(frame)-n-4:len(frame)-n])] = true
	}
	if len(keys) < 5 {
		t.Errorf("nine frames have only %d masks", len(keys))
	}
	// The example of RFC 6455, section 5.7.
	hello := []byte("Hello")
	mask(hello, 0x3d21fa37)
	if !bytes.Equal(hello, []byte{0x7f, 0x9f, 0x4d, 0x51, 0x58}) {
		t.Errorf("Hello is masked as %x", hello)
	}
}

func TestCloseCode(t *testing.T) {
	for payload, want := range map[string]int{"": closeNoStatus, "\x03": closeNoStatus, "\x03\xe8": 1000, "\x11\x31bad pass": 4401} {
		if got := closeCode([]byte(payload)); got != want {
			t.Errorf("closeCode(%q) = %d, want %d", payload, got, want)
		}
	}
}

func FuzzFrameReader(f *testing.F) {
	f.Add(serverFrame(0x81, "text"), 1)
	f.Add(append(serverFrame(0x01, "a"), serverFrame(0x80, "b")...), 2)
	f.Add(serverFrame(0x88, "\x03\xe8"), 3)
	f.Add([]byte{0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0}, 4)
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		if size < 1 {
			return
		}
		var whole, cut frameReader
		var fromWhole, fromCut frames
		errWhole := whole.feed(stream, &fromWhole)
		var errCut error
		for rest := stream; len(rest) > 0 && errCut == nil; {
			n := min(size, len(rest))
			errCut = cut.feed(append([]byte(nil), rest[:n]...), &fromCut)
			rest = rest[n:]
		}
		if (errWhole == nil) != (errCut == nil) || !reflect.DeepEqual(fromWhole.all, fromCut.all) {
			t.Errorf("at once: %q, %v; in chunks of %d: %q, %v", fromWhole.all, errWhole, size, fromCut.all, errCut)
		}
	})
}
