package nginx_test

import (
	"testing"

	"github.com/cutover/cutover/lbagent/drivertest"
)

func harness(k kind) drivertest.Harness {
	return drivertest.Harness{
		Name:     k.name,
		NewProxy: func(t testing.TB) drivertest.Proxy { return startProxy(t, k) },
	}
}

func reloadHarness() drivertest.Harness {
	h := harness(reload)
	h.Lossy = true // Debian's nginx: Info.Limits says so
	h.Checks = 25
	return h
}

func TestLuaConformance(t *testing.T) { drivertest.Run(t, harness(lua)) }

func TestReloadConformance(t *testing.T) { drivertest.Run(t, reloadHarness()) }

func BenchmarkLuaOneChange(b *testing.B) { drivertest.BenchmarkOneChange(b, harness(lua)) }

func BenchmarkLuaPrepare(b *testing.B) { drivertest.BenchmarkPrepare(b, harness(lua)) }

func BenchmarkReloadOneChange(b *testing.B) { drivertest.BenchmarkOneChange(b, reloadHarness()) }
