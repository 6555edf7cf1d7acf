package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestGatheringKeepsOrderAndTheLastBytes(t *testing.T) {
	near, far := net.Pipe()
	g := newGathering(near)
	received := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(far)
		received <- all
	}()
	var want []byte
	for i := range 2000 {
		part := bytes.Repeat([]byte{byte(i)}, i%700)
		want = append(want, part...)
		if n, err := g.Write(part); n != len(part) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-received; !bytes.Equal(got, want) {
		t.Errorf("%d bytes came, want %d", len(got), len(want))
	}
	if _, err := g.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after the end: %v", err)
	}
}

// A far side that takes nothing neither lets the buffer grow without bound nor holds up
// the close.
func TestGatheringIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		g := newGathering(near)
		ended := make(chan int)
		go func() {
			written := 0
			for {
				n, err := g.Write(make([]byte, 10_000))
				if err != nil {
					break
				}
				written += n
			}
			ended <- written
		}()
		synctest.Wait()
		began := time.Now()
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited > closeTimeout {
			t.Errorf("closed after %v", waited)
		}
		if written := <-ended; written < maxGathered || written > 2*maxGathered+20_000 {
			t.Errorf("%d bytes were taken", written)
		}
	})
}

func TestGatheringTellsOfAFailure(t *testing.T) {
	near, far := net.Pipe()
	g := newGathering(near)
	_ = far.Close()
	for {
		if _, err := g.Write([]byte("x")); err != nil {
			break
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}
