package reply

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// MaxBody bounds the body of a request, in bytes.
const MaxBody = 64 << 20

// Text answers with plain text, without a newline at its end.
func Text(w http.ResponseWriter, status int, format string, args ...any) {
	text := format
	if len(args) > 0 {
		text = fmt.Sprintf(format, args...)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
}

// Empty answers with a status and no body.
func Empty(w http.ResponseWriter, status int) {
	w.Header()["Content-Type"] = nil
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(status)
}

// Bytes answers 200 with a body that is ready.
func Bytes(w http.ResponseWriter, mediaType string, body []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// JSON answers 200 with a document, as JSONP or gzipped if the request asks.
func JSON(w http.ResponseWriter, r *http.Request, doc any) {
	body, err := json.Marshal(doc)
	if err != nil {
		Text(w, http.StatusInternalServerError, "local Mesos cannot encode its answer: %v", err)
		return
	}
	if cb := r.URL.Query().Get("jsonp"); cb != "" {
		Bytes(w, "text/javascript", fmt.Appendf(nil, "%s(%s);", cb, body))
		return
	}
	if len(body) > 1024 && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Type", wire.JSON)
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(body)
		_ = z.Close()
		return
	}
	Bytes(w, wire.JSON, body)
}

// NotFound answers 404.
func NotFound(w http.ResponseWriter, _ *http.Request) {
	Text(w, http.StatusNotFound, "404 Not Found.")
}

// NotImplemented answers 501 and says what a real Mesos has and this has not.
func NotImplemented(w http.ResponseWriter, what string) {
	Text(w, http.StatusNotImplemented, "local Mesos does not implement %s; a real Mesos does.", what)
}

// Post checks that a request is a POST, and answers it otherwise.
func Post(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodPost {
		return true
	}
	w.Header().Set("Allow", "POST")
	Text(w, http.StatusMethodNotAllowed, "405 Method Not Allowed. Expecting one of { 'POST' }, but received '%s'.", r.Method)
	return false
}

// Decode reads the body of a v1 API call into msg. It returns the media type of
// the request; on a fault it has answered and returns false.
func Decode(w http.ResponseWriter, r *http.Request, msg wire.Message) (string, bool) {
	ct := r.Header.Get("Content-Type")
	switch ct {
	case "":
		Text(w, http.StatusBadRequest, "Expecting 'Content-Type' to be present")
		return "", false
	case wire.JSON, wire.Protobuf:
	default:
		Text(w, http.StatusUnsupportedMediaType, "Expecting 'Content-Type' of application/json or application/x-protobuf")
		return "", false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			Text(w, http.StatusRequestEntityTooLarge, "The body is larger than %d bytes", int64(MaxBody))
		} else {
			Text(w, http.StatusBadRequest, "Failed to read the body: %v", err)
		}
		return "", false
	}
	if ct == wire.Protobuf {
		if err := wire.UnmarshalProto(body, msg); err != nil {
			Text(w, http.StatusBadRequest, "Failed to parse body into Call protobuf")
			return "", false
		}
		return ct, true
	}
	if err := wire.UnmarshalJSON(body, msg); err != nil {
		if errors.Is(err, wire.ErrNotJSON) {
			Text(w, http.StatusBadRequest, "Failed to parse body into JSON: %v", err)
		} else {
			Text(w, http.StatusBadRequest, "Failed to convert JSON into Call protobuf: %v", err)
		}
		return "", false
	}
	return ct, true
}

// Accepts returns the media type to answer in: JSON whenever it is allowed,
// whatever the weights. It has answered 406 when it returns false.
func Accepts(w http.ResponseWriter, r *http.Request) (string, bool) {
	accept := r.Header.Values("Accept")
	if len(accept) == 0 {
		return wire.JSON, true
	}
	protobuf := false
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		t, _, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil {
			continue
		}
		switch t {
		case wire.JSON, "*/*", "application/*":
			return wire.JSON, true
		case wire.Protobuf:
			protobuf = true
		}
	}
	if protobuf {
		return wire.Protobuf, true
	}
	Text(w, http.StatusNotAcceptable, "Expecting 'Accept' to allow 'application/x-protobuf' or 'application/json'")
	return "", false
}

// Message answers 200 with a message in a media type.
func Message(w http.ResponseWriter, mediaType string, msg wire.Message) {
	b, err := wire.Marshal(mediaType, msg)
	if err != nil {
		Text(w, http.StatusInternalServerError, "local Mesos cannot encode its answer: %v", err)
		return
	}
	Bytes(w, mediaType, b)
}

// Handler wraps a mux: trailing slashes do not matter, and unknown paths are
// answered as Mesos answers them.
func Handler(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := r.URL.Path; len(p) > 1 && strings.HasSuffix(p, "/") {
			r.URL.Path = strings.TrimRight(p, "/")
			r.URL.RawPath = ""
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			NotFound(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}
