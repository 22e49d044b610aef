use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/podd/config.toml"))
}

#[test]
fn the_printed_default_reads_back() {
    let text = Config::default().to_toml();
    assert_eq!(parse(&text).unwrap(), Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn an_unknown_key_is_refused_with_file_and_line() {
    let e = parse("socket = \"/a\"\n[log]\nlevel = \"info\"\ncolour = true\n")
        .unwrap_err()
        .to_string();
    assert!(
        e.starts_with("/etc/podd/config.toml:4: unknown field `colour`"),
        "{e}"
    );
    let e = parse("socket = \"/a\"\nstate = \"/b\"\n")
        .unwrap_err()
        .to_string();
    assert!(
        e.starts_with("/etc/podd/config.toml:2: unknown field `state`"),
        "{e}"
    );
}

#[test]
fn values_that_make_no_sense_are_refused() {
    for (text, want) in [
        ("[log]\nlevel = \"podd=loud\"", "log.level"),
        (
            "socket = \"podd.sock\"",
            "socket: podd.sock is not an absolute path",
        ),
        ("[network]\nsubnets = [\"10.0.0.0\"]", ":2: "),
        ("[network]\nsubnets = [\"10.0.0.0/32\"]", ":2: "),
        (
            "[network]\nsubnets = [\"10.0.0.0/8\", \"11.0.0.0/8\"]",
            "at most one range of each family",
        ),
        ("[log]\nlevel = \"inof\"", "log.level: \"inof\" is no level"),
        ("[observe]\nsocket = \"observe.sock\"", "observe.socket"),
        ("[observe]\nlisten = [\"127.0.0.1\"]", ":2: "),
        (
            "[observe]\nlisten = [\"127.0.0.1:0\"]",
            "observe.listen: 127.0.0.1:0 names no port",
        ),
        (
            "[tracing]\nendpoint = \"127.0.0.1:4317\"",
            "tracing.endpoint: must be http://HOST:PORT",
        ),
        ("[tracing]\nendpoint = \"https://a:4317\"", "tracing.endpoint"),
        ("[tracing]\nendpoint = \"http://a b\"", "tracing.endpoint"),
        (
            "[tracing]\nsamples_per_million = 1000001",
            "tracing.samples_per_million",
        ),
        ("[streaming]\naddress = \"::\"", "streaming.address"),
        ("[streaming]\naddress = \"localhost\"", ":2: "),
        ("[network]\nsubnets = []", "unless subnet_source is kubelet"),
        (
            "[network]\nbridge = \"a-name-that-is-too-long\"",
            "network.bridge",
        ),
        ("[network]\nmtu = 100", "network.mtu"),
        (
            "[registries.mirrors.\"a.b\"]\nendpoints = [\"ftp://x\"]",
            "registries.mirrors: a.b: \"ftp://x\"",
        ),
        (
            "[limits]\nnofile_soft = 10\nnofile_hard = 9",
            "limits.nofile_soft",
        ),
        (
            "[limits]\nexec_sync_output_bytes = 83886080",
            "limits.exec_sync_output_bytes",
        ),
        (
            "[cdi]\nspec_dirs = [\"cdi\"]",
            "cdi.spec_dirs: cdi is not an absolute path",
        ),
        ("[selinux]\ncategories = 1", "selinux.categories"),
        ("[cgroup]\ndriver = \"sysd\"", ":2: unknown variant `sysd`"),
        ("[cgroup]\ndefault_parent = \"podd\"", "cgroup.default_parent"),
    ] {
        let e = parse(text).unwrap_err().to_string();
        assert!(e.contains(want), "{text}: {e}");
    }
    parse("[network]\nsubnets = []\nsubnet_source = \"kubelet\"").unwrap();
}

#[test]
fn a_named_file_must_exist() {
    let e = Config::load(Some(Path::new("/nonexistent/podd.toml")))
        .unwrap_err()
        .to_string();
    assert!(e.starts_with("cannot read /nonexistent/podd.toml: "), "{e}");
}

#[test]
fn every_key_is_documented() {
    let docs = include_str!("../../../docs/config.md");
    let tree: toml::Table = Config::default().to_toml().parse().unwrap();
    let mut missing = Vec::new();
    for (key, value) in &tree {
        match value {
            toml::Value::Table(section) => {
                let keys = section.keys().map(|k| format!("{key}.{k}"));
                missing.extend(keys.filter(|k| !docs.contains(&format!("`{k}`"))));
            }
            _ if docs.contains(&format!("`{key}`")) => {}
            _ => missing.push(key.clone()),
        }
    }
    assert!(missing.is_empty(), "docs/config.md does not describe {missing:?}");
}
