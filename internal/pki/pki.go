package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cutover/cutover/internal/atomicfile"
)

// Lifetimes. A leaf is issued again when less than a third of its life is left.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 90 * 24 * time.Hour
	backdate      = 5 * time.Minute // clocks differ
)

// Authority signs the certificates of one cluster.
type Authority struct {
	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// OpenAuthority reads the authority in dir, or makes it (ca.pem, ca-key.pem, directory 0700).
func OpenAuthority(dir, cluster string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("certificate directory: %w", err)
	}
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err == nil {
		cert, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", certFile, err)
		}
		key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("%s: not an ECDSA key", keyFile)
		}
		return &Authority{cluster: cluster, cert: cert, key: key}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the certificate authority in %s: %w (remove both ca files to make a new one; every peer needs a new certificate then)", dir, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl, err := template(authorityLife)
	if err != nil {
		return nil, err
	}
	tmpl.Subject = pkix.Name{CommonName: "cutover " + cluster}
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	if err := writePair(certFile, keyFile, der, key); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{cluster: cluster, cert: cert, key: key}, nil
}

// Issue makes sure that dir holds a current certificate for the peer (ca.pem, cert.pem, key.pem). ips are the addresses
// on which the peer is dialled.
func (a *Authority) Issue(dir, role, name string, ips ...net.IP) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if pair, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil {
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err == nil && time.Until(leaf.NotAfter) > leafLife/3 && leaf.CheckSignatureFrom(a.cert) == nil {
			return nil
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl, err := template(leafLife)
	if err != nil {
		return err
	}
	tmpl.Subject = pkix.Name{CommonName: name}
	tmpl.URIs = []*url.URL{{Scheme: "cutover", Host: a.cluster, Path: "/" + role + "/" + name}}
	tmpl.IPAddresses = ips
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})); err != nil {
		return err
	}
	return writePair(certFile, keyFile, der, key)
}

// Config returns the TLS configuration of the peer whose files are in dir, for both sides of a connection: it shows its
// certificate, and accepts peers of the same authority with the given role only.
func Config(dir, cluster, peerRole string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, fmt.Errorf("read the certificate in %s: %w", dir, err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: no certificate of an authority in it", filepath.Join(dir, "ca.pem"))
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		RootCAs:      pool,
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return checkPeer(cs, cluster, peerRole)
		},
	}, nil
}

// ConfigFor narrows what Config returned to the one peer of that name. nil stays nil.
func ConfigFor(conf *tls.Config, cluster, peerRole, name string) *tls.Config {
	if conf == nil {
		return nil
	}
	conf = conf.Clone()
	before := conf.VerifyConnection
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		if before != nil {
			if err := before(cs); err != nil {
				return err
			}
		}
		return checkName(cs, cluster, peerRole, name)
	}
	return conf
}

// ServerConfig returns the TLS configuration of a server whose files are in dir and whose clients show no certificate.
func ServerConfig(dir string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, fmt.Errorf("read the certificate in %s: %w", dir, err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}, nil
}

func checkPeer(cs tls.ConnectionState, cluster, role string) error {
	names, err := peerNames(cs, cluster, role)
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("the peer is not a %s of cluster %s", role, cluster)
	}
	return err
}

func checkName(cs tls.ConnectionState, cluster, role, name string) error {
	names, err := peerNames(cs, cluster, role)
	if err == nil && !slices.Contains(names, name) {
		err = fmt.Errorf("the peer's certificate is that of %s %q, not of %q", role, names, name)
	}
	return err
}

// peerNames are the names that the peer's certificate gives it in a role.
func peerNames(cs tls.ConnectionState, cluster, role string) ([]string, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("the peer showed no certificate")
	}
	var names []string
	for _, u := range cs.PeerCertificates[0].URIs {
		if name, ok := strings.CutPrefix(u.Path, "/"+role+"/"); ok && name != "" && u.Scheme == "cutover" && u.Host == cluster {
			names = append(names, name)
		}
	}
	return names, nil
}

func template(life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: now.Add(life)}, nil
}

func writePair(certFile, keyFile string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// The key first: a certificate without its key would look complete.
	if err := atomicfile.Write(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})); err != nil {
		return err
	}
	return atomicfile.Write(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
