package haproxy

import (
	"testing"

	"github.com/cutover/cutover/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
