package replay

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mesos/mesos-go/api/v1/lib/scheduler"

	"github.com/cutover/cutover/mesosframework/localmesos/wire"
)

// Protobuf bodies are recorded in text format, as {"text": "..."}.

// encodeCall gives the bytes of a call, as JSON or, where the recording used
// it, as protobuf.
func encodeCall(body string, l Line) ([]byte, error) {
	if l.Headers["Content-Type"] != wire.Protobuf {
		return []byte(body), nil
	}
	var doc struct{ Text string }
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		return nil, err
	}
	tree, err := parseText(doc.Text)
	if err != nil {
		return nil, err
	}
	asJSON, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	var call scheduler.Call
	if err := wire.UnmarshalJSON(asJSON, &call); err != nil {
		return nil, err
	}
	return call.Marshal()
}

// decodedBody is the body of a line as a JSON document.
func decodedBody(l Line) any {
	b, ok := l.Body.(map[string]any)
	if !ok {
		if l.Body == nil && l.What == "EOF" {
			return nil
		}
		return l.Body
	}
	t, ok := b["text"].(string)
	if !ok || len(b) != 1 {
		return b
	}
	tree, err := parseText(t)
	if err != nil {
		return map[string]any{"unparsable": err.Error()}
	}
	return any(tree)
}

// repeatedFields are those of the recordings that are lists even when they
// hold one element.
var repeatedFields = map[string]bool{"resources": true, "attributes": true, "capabilities": true, "range": true, "roles": true}

// parseText parses the protobuf text format as far as the recordings use it.
func parseText(s string) (map[string]any, error) {
	p := textParser{tokens: tokens(s)}
	doc, err := p.message("")
	if err == nil && len(p.tokens) > 0 {
		err = fmt.Errorf("protobuf text: unexpected %q", p.tokens[0])
	}
	return doc, err
}

type textParser struct{ tokens []string }

// tokens splits text into names with their colon, braces and values.
func tokens(s string) []string {
	var out []string
	for len(s) > 0 {
		switch c := s[0]; {
		case c == ' ' || c == '\n':
			s = s[1:]
		case c == '{' || c == '}':
			out, s = append(out, s[:1]), s[1:]
		case c == '"':
			end := 1
			for end < len(s) && s[end] != '"' {
				if s[end] == '\\' {
					end++
				}
				end++
			}
			end = min(end+1, len(s))
			out, s = append(out, s[:end]), s[end:]
		default:
			end := strings.IndexAny(s, " \n{}")
			if end < 0 {
				end = len(s)
			}
			out, s = append(out, s[:end]), s[end:]
		}
	}
	return out
}

func (p *textParser) next() string {
	if len(p.tokens) == 0 {
		return ""
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	return t
}

func (p *textParser) message(parent string) (map[string]any, error) {
	doc := map[string]any{}
	for len(p.tokens) > 0 && p.tokens[0] != "}" {
		name := p.next()
		var v any
		if field, ok := strings.CutSuffix(name, ":"); ok {
			name = field
			v = scalar(p.next())
		} else {
			if p.next() != "{" {
				return nil, fmt.Errorf("protobuf text: %q is neither a value nor a message", name)
			}
			m, err := p.message(name)
			if err != nil {
				return nil, err
			}
			if p.next() != "}" {
				return nil, errors.New("protobuf text: a message does not end")
			}
			v = m
		}
		list, isList := doc[name].([]any)
		switch old, there := doc[name]; {
		case isList:
			doc[name] = append(list, v)
		case there:
			doc[name] = []any{old, v}
		case repeatedFields[name], name == "offers" && parent == "offers":
			doc[name] = []any{v}
		default:
			doc[name] = v
		}
	}
	return doc, nil
}

func scalar(t string) any {
	if strings.HasPrefix(t, `"`) {
		if s, err := strconv.Unquote(t); err == nil {
			return s
		}
	}
	if f, err := strconv.ParseFloat(t, 64); err == nil {
		return f
	}
	switch t {
	case "true":
		return true
	case "false":
		return false
	}
	return t
}
