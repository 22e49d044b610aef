//! Sessions over TLS, by a client that trusts podd's certificate and nothing else.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::podd;
use podd_e2e::session::{DIALECTS, Remote, Session, Wanted, exit_code};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::case::{Env, cases, equal};
use crate::lifecycle::sleeper;

cases!("tls": sessions_are_encrypted, a_wrong_key_stops_podd);

/// Of 127.0.0.1, signed by itself, good until 2126.
const CERTIFICATE: &str = include_str!("tls/certificate.pem");
const KEY: &str = include_str!("tls/key.pem");

const WANTED: Wanted = Wanted {
    stdin: true,
    tty: false,
};

/// Writes podd's configuration with a certificate and a key.
fn configure(key: &str) -> Result<()> {
    let files = ["/etc/podd/tls.crt", "/etc/podd/tls.key"];
    fs::write(files[0], CERTIFICATE)?;
    fs::write(files[1], key)?;
    let table = format!(
        "\n[streaming.tls]\ncertificate = {:?}\nkey = {:?}\n",
        files[0], files[1]
    );
    Ok(fs::write(podd::CONFIG, podd::config() + &table)?)
}

/// Carries plain connections to podd through TLS, until the value is dropped.
struct Relay {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Relay {
    fn start(podd: SocketAddr) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes())?)?;
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(client));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            while let Ok((mut plain, _)) = listener.accept().await {
                let connector = connector.clone();
                tokio::spawn(async move {
                    let socket = TcpStream::connect(podd).await?;
                    let name = ServerName::from(podd.ip());
                    let mut encrypted = connector.connect(name, socket).await?;
                    tokio::io::copy_bidirectional(&mut plain, &mut encrypted).await
                });
            }
        });
        Ok(Self {
            address,
            _runtime: runtime,
        })
    }
}

/// Address and path of a URL that has to be HTTPS.
fn parts(url: &str) -> Result<(SocketAddr, &str)> {
    let rest = url
        .strip_prefix("https://")
        .with_context(|| format!("{url} is not HTTPS"))?;
    let (host, path) = rest.split_once('/').context("the URL has no path")?;
    Ok((host.parse()?, path))
}

fn sessions_are_encrypted(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "tls")?;
    configure(KEY)?;
    let podd = env.podd()?;
    podd.end(Signal::SIGTERM)?;
    podd.start_again()?;
    let input = vec![b'x'; 200 << 10];
    for dialect in DIALECTS {
        let url = cri.exec_url(&id, &["sh", "-c", "cat; exit 3"], WANTED)?;
        let (address, path) = parts(&url)?;
        let plain = Session::open(&format!("http://{address}/{path}"), dialect, "v4.channel.k8s.io");
        ensure!(plain.is_err(), "a session began without TLS");
        let relay = Relay::start(address)?;
        let mut session = Remote::open(&format!("http://{}/{path}", relay.address), dialect, WANTED)?;
        session.write(&input)?;
        session.end_input()?;
        equal("code", exit_code(&session.status()?)?, 3)?;
        ensure!(
            session.stdout == input,
            "{} bytes came back",
            session.stdout.len()
        );
    }
    fs::write(podd::CONFIG, podd::config())?;
    let podd = env.podd()?;
    podd.end(Signal::SIGTERM)?;
    podd.start_again()?;
    pod.remove()
}

fn a_wrong_key_stops_podd(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("wrong")?;
    configure(CERTIFICATE)?;
    let mark = podd::log_mark();
    let podd = env.podd()?;
    podd.end(Signal::SIGTERM)?;
    ensure!(podd.start_again().is_err(), "podd serves without a key");
    let said = podd::log_since(mark);
    ensure!(
        said.contains("cannot read the key of streaming.tls from /etc/podd/tls.key"),
        "podd said: {said}"
    );
    fs::write(podd::CONFIG, podd::config())?;
    podd.start_again()?;
    pod.remove()
}
