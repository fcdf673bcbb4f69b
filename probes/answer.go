package probes

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// errMore ends what has been received of an answer while the connection goes on.
var errMore = errors.New("more is to come")

// received reads what has come so far and then fails with end.
type received struct {
	data  []byte
	end   error
	ended bool
}

// short says that the reader wanted more than what has come so far. Its error may be
// another then: net/textproto takes what is left for a whole line.
func (r *received) short() bool { return r.ended && errors.Is(r.end, errMore) }

// Read implements io.Reader.
func (r *received) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		r.ended = true
		return 0, r.end
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// readSize is what is read of an answer at a time.
const readSize = 4 << 10

// scratch is memory that the calls of a round use one after the other: none for tcp.
type scratch struct {
	buf    []byte
	reader *bufio.Reader
}

func (s *scratch) memory() []byte {
	if s.buf == nil {
		s.buf, s.reader = make([]byte, readSize), bufio.NewReaderSize(nil, readSize)
	}
	return s.buf
}

// parse reads an answer and of its body what a probe looks at. The answer is nil if its
// head is wrong or not whole; body may be short if there is an error.
func (s *scratch) parse(from io.Reader, req *http.Request) (res *http.Response, body []byte, err error) {
	s.reader.Reset(from)
	res, err = readResponse(s.reader, req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(io.LimitReader(res.Body, maxOutput))
	return res, body, err
}

// readResponse skips informational answers, as net/http does.
func readResponse(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	for range 5 {
		res, err := http.ReadResponse(r, req)
		if err != nil || res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res, err
		}
	}
	return nil, errors.New("too many 1xx informational responses")
}

// redirects says that http.Client might send another request.
func redirects(res *http.Response) bool {
	switch res.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return res.Header.Get("Location") != ""
	}
	return false
}

// judge counts 200 to 399 as a success; err is of reading the body.
func judge(res *http.Response, body []byte, err error) (outcome, error) {
	switch {
	case err != nil:
		return outcome{result: failure}, err
	case res.StatusCode < 200 || res.StatusCode >= 400:
		// the body is not shown: https://issue.k8s.io/99425
		return outcome{result: failure, output: fmt.Sprintf("HTTP probe failed with statuscode: %d", res.StatusCode)}, nil
	case res.StatusCode >= 300:
		return outcome{result: success, warning: true, output: "Probe terminated redirects, Response body: " + string(body)}, nil
	}
	return outcome{result: success, output: string(body)}, nil
}
