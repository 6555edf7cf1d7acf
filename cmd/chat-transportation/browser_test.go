package main

import (
	"context"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browsers are the programs that can drive the pages, where they are installed.
// scripts/test says so where none is.
func browsers() (found []string) {
	for _, name := range []string{
		"chromium", "chromium-browser", "google-chrome",
		"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
	} {
		if path, err := exec.LookPath(name); err == nil {
			return append(found, path)
		}
	}
	return nil
}

// tab is a page in a browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	requests []string // URLs that the page asked for
	problems []string // errors in its console
}

// openTab starts a browser of its own, which ends with the test.
func openTab(t *testing.T, program string, width, height int64) *tab {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true),
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(int(width), int(height)),
	)
	allocator, cancelAllocator := chromedp.NewExecAllocator(t.Context(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx)
		cancel()
		cancelAllocator()
	})
	page := &tab{t: t, ctx: ctx}
	err := chromedp.Listen(ctx, func(event any) {
		page.mu.Lock()
		defer page.mu.Unlock()
		switch event := event.(type) {
		case *network.EventRequestWillBeSent:
			page.requests = append(page.requests, event.Request.URL)
		case *runtime.EventExceptionThrown:
			page.problems = append(page.problems, event.ExceptionDetails.Text)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	page.do(chromedp.EmulateViewport(width, height))
	return page
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// wait waits until a JavaScript expression is true.
func (p *tab) wait(expression string) {
	p.t.Helper()
	if _, err := chromedp.Run(p.ctx, chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(20*time.Second))); err != nil {
		text, _ := chromedp.Run(p.ctx, chromedp.Evaluate[string]("document.body.innerText"))
		p.t.Fatalf("waited in vain for %s: %v; the page shows:\n%s", expression, err, text)
	}
}

// check demands that the page asked nobody but its own host and had no error.
func (p *tab) check(host string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.requests) == 0 {
		p.t.Error("no request was seen")
	}
	for _, request := range p.requests {
		if parsed, err := url.Parse(request); err != nil || parsed.Host != host && parsed.Scheme != "data" && parsed.Scheme != "blob" {
			p.t.Errorf("the page asked for %s", request)
		}
	}
	for _, problem := range p.problems {
		p.t.Errorf("an error in the page: %s", problem)
	}
}

func inPane(pane, what string) string {
	return `document.querySelector('[data-testid="` + pane + `"] [data-testid="` + what + `"]')`
}

const fitsSideways = `document.documentElement.scrollWidth <= document.documentElement.clientWidth`

// inReach is true once the element can be scrolled to and nothing covers or clips it.
func inReach(element string) string {
	return `(() => {
		const element = ` + element + `;
		element?.scrollIntoView({ block: "nearest" });
		const box = element?.getBoundingClientRect();
		return box && box.height > 0 && box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight + 1 &&
			element.contains(document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2));
	})()`
}

func TestPagesInABrowser(t *testing.T) {
	for _, program := range browsers() {
		p := serveWith(t, nil)
		host := strings.TrimPrefix(p.url, "http://")
		t.Run("two users chat", func(t *testing.T) {
			for _, prefix := range []string{"", "/transportation"} {
				page := openTab(t, program, 1280, 900)
				page.do(chromedp.Navigate(p.url + prefix + "/demo"))
				for _, pane := range []string{"pane-left", "pane-right"} {
					page.wait(`document.querySelector('[data-testid="` + pane + `"]')?.dataset.state === "open"`)
				}
				text := `hello <b>you</b> & 😀`
				page.do(
					chromedp.SendKeys(chromedp.CSS(`[data-testid="pane-left"] [data-testid="composer"]`), text+"\r"),
				)
				page.wait(inPane("pane-right", "messages") + `.innerText.includes("` + text + `")`)
				page.wait(inPane("pane-left", "messages") + `.innerText.includes("` + text + `")`)
				page.do(chromedp.Click(chromedp.CSS(`[data-testid="pane-right"] [data-testid="frames-toggle"]`)))
				page.wait(inPane("pane-right", "frame-list") + `.innerText.includes("delivered")`)
				page.do(chromedp.Click(chromedp.CSS(`[data-testid="pane-left"] [data-testid="toggle"]`)))
				page.wait(`document.querySelector('[data-testid="pane-left"]').dataset.state === "closed"`)
				page.do(chromedp.Click(chromedp.CSS(`[data-testid="pane-left"] [data-testid="toggle"]`)))
				page.wait(`document.querySelector('[data-testid="pane-left"]').dataset.state === "open"`)
				page.check(host)
			}
		})
		t.Run("a phone and another user", func(t *testing.T) {
			page := openTab(t, program, 390, 800)
			page.do(chromedp.Navigate(p.url + "/demo?user=3"))
			page.wait(`document.querySelector('[data-state="open"]') !== null`)
			page.wait(fitsSideways)
			page.check(host)
		})
		t.Run("small screens", func(t *testing.T) {
			page := openTab(t, program, 320, 568)
			for _, screen := range [][2]int64{{320, 568}, {375, 667}, {667, 375}, {800, 500}} {
				page.do(chromedp.EmulateViewport(screen[0], screen[1]), chromedp.Navigate(p.url+"/demo"))
				page.wait(`document.querySelector('[data-testid="pane-left"]')?.dataset.state === "open"`)
				page.wait(inReach(inPane("pane-left", "composer")))
				page.do(chromedp.SendKeys(chromedp.CSS(`[data-testid="pane-left"] [data-testid="composer"]`), "hello\r"))
				page.wait(inReach(inPane("pane-left", "message") + `?.querySelector(".bubble")`))
				page.do(chromedp.Click(chromedp.CSS(`[data-testid="pane-left"] [data-testid="frames-toggle"]`)))
				page.wait(inReach(inPane("pane-left", "frame-list")))
				page.wait(inReach(inPane("pane-left", "send")))
				page.wait(fitsSideways)
			}
			page.check(host)
		})
		t.Run("an id that is none", func(t *testing.T) {
			page := openTab(t, program, 320, 568)
			page.do(chromedp.Navigate(p.url + "/demo?user=abc"))
			page.wait(inPane("pane-left", "fault") + `?.innerText.includes("still user 3")`)
			page.wait(`document.getElementById(` + inPane("pane-left", "user-id") + `.getAttribute("aria-describedby")).innerText !== ""`)
			// The greatest id is shown whole, and the message goes.
			page.wait(`(` + inPane("pane-left", "user-id") + `.value = "") === ""`)
			page.do(chromedp.SendKeys(chromedp.CSS(`[data-testid="user-id"]`), "9223372036854775807\r"))
			page.wait(inPane("pane-left", "fault") + `.hidden`)
			page.wait(inPane("pane-left", "user-id") + `.scrollWidth <= ` + inPane("pane-left", "user-id") + `.clientWidth`)
			page.wait(fitsSideways)
			page.check(host)
		})
		t.Run("reconnects by itself", func(t *testing.T) {
			address := freeAddress(t)
			first := launch(t, nil, map[string]string{"HTTP_ADDR": address, "SHUTDOWN_DRAIN_WINDOW": "0s"})
			first.url = "http://" + address
			first.eventually("the instance is ready", func() bool { return first.status("/readyz") == 200 })
			page := openTab(t, program, 1280, 900)
			page.do(chromedp.Navigate(first.url + "/demo"))
			page.wait(`document.querySelector('[data-testid="pane-left"]')?.dataset.state === "open"`)
			first.signal(syscall.SIGTERM)
			first.ended(20 * time.Second)
			page.wait(`document.querySelector('[data-testid="pane-left"]').dataset.state !== "open"`)
			page.wait(inPane("pane-left", "close-detail") + `.innerText.startsWith("in ") && !` + inPane("pane-left", "connect-now") + `.hidden`)
			// Whoever does not want to wait can stop, and it stays stopped.
			page.do(chromedp.Click(chromedp.CSS(`[data-testid="pane-right"] [data-testid="toggle"]`)))
			page.wait(`document.querySelector('[data-testid="pane-right"]').dataset.state === "closed"`)
			// Another key, as after any restart in demo mode: the page needs a new token too.
			launch(t, nil, map[string]string{"HTTP_ADDR": address})
			page.wait(`document.querySelector('[data-testid="pane-left"]').dataset.state === "open"`)
			page.wait(`document.querySelector('[data-testid="pane-right"]').dataset.state === "closed"`)
			page.check(address)
		})
		t.Run("documents", func(t *testing.T) {
			for _, path := range []string{"/docs", "/docs/asyncapi", "/transportation/docs", "/transportation/docs/asyncapi"} {
				page := openTab(t, program, 1280, 900)
				page.do(chromedp.Navigate(p.url + path))
				for _, width := range []int64{1280, 390, 320} {
					page.do(chromedp.EmulateViewport(width, 900))
					page.wait(`document.readyState === "complete" && /connection[-_]pass/.test(document.body.innerText)`)
					page.wait(fitsSideways)
					page.check(host)
				}
			}
		})
	}
}
