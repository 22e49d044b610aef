//! PullImage, ImageStatus, ListImages, RemoveImage, ImageFsInfo.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use podd_images::{Auth, Image, Reference};
use podd_proto::v1;
use tracing::info;

use super::Messages;
use super::fault::Fault;
use super::list::{self, Calls};
use crate::engine::{Engine, blocking, now};

/// PullImage. The answer is the image's id, which containers will carry as their image id.
pub async fn pull(
    engine: &Arc<Engine>,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse, Fault> {
    let name = image_name(request.image)?;
    let auth = match request.auth {
        Some(auth) => credentials(auth, Reference::parse(&name)?.host())?,
        None => None,
    };
    let began = Instant::now();
    let pulled = engine.images.pull(&name, auth).await;
    engine.metrics.pulled(began.elapsed(), pulled.is_ok());
    let image = pulled?;
    info!(image = name, id = %image.id, "image is in the local store");
    Ok(v1::PullImageResponse {
        image_ref: image.id.to_string(),
    })
}

/// ImageStatus. An image that is not there is an empty answer, not an error.
pub async fn status(
    engine: &Arc<Engine>,
    request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse, Fault> {
    let name = image_name(request.image)?;
    let Some(image) = engine.images.resolve(&name) else {
        return Ok(v1::ImageStatusResponse::default());
    };
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("info".to_owned(), verbose(engine, &image).await?);
    }
    Ok(v1::ImageStatusResponse {
        image: Some(message(engine, &image)),
        info,
    })
}

/// ListImages, all or the one that the filter names.
pub fn list(engine: &Engine, wanted: Option<v1::ImageFilter>) -> Result<v1::ListImagesResponse, Fault> {
    let calls = Calls {
        whole: "ListImages",
        stream: "StreamImages",
    };
    let found = select(engine, wanted);
    let images = calls.whole(engine, found.iter().map(|image| message(engine, image)))?;
    Ok(v1::ListImagesResponse { images })
}

/// StreamImages, likewise.
pub fn stream(engine: &Arc<Engine>, wanted: Option<v1::ImageFilter>) -> Messages<v1::StreamImagesResponse> {
    let found = select(engine, wanted);
    let engine = Arc::clone(engine);
    list::each(found, move |image| v1::StreamImagesResponse {
        images: vec![message(&engine, &image)],
    })
}

fn select(engine: &Engine, wanted: Option<v1::ImageFilter>) -> Vec<Arc<Image>> {
    let name = wanted
        .and_then(|f| f.image)
        .map(|i| i.image)
        .filter(|name| !name.is_empty());
    match name {
        Some(name) => engine.images.resolve(&name).into_iter().collect(),
        None => engine.images.list(),
    }
}

/// RemoveImage. An image that is not there counts as removed.
pub async fn remove(
    engine: &Arc<Engine>,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse, Fault> {
    let name = image_name(request.image)?;
    let images = engine.images.clone();
    blocking("RemoveImage", move || images.remove(&name))
        .await
        .map_err(Arc::new)?;
    Ok(v1::RemoveImageResponse {})
}

/// ImageFsInfo: what images use, which is counted as it happens, so that nothing is walked. On a file system of their
/// own, what containers have written, as far as it was measured; else both are one file system, and are told as one.
#[must_use]
pub fn fs_info(engine: &Arc<Engine>) -> v1::ImageFsInfoResponse {
    let timestamp = now();
    let filesystem = |mountpoint: String, bytes: u64, inodes: u64| v1::FilesystemUsage {
        timestamp,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
        used_bytes: Some(v1::UInt64Value { value: bytes }),
        inodes_used: Some(v1::UInt64Value { value: inodes }),
    };
    let usage = engine.images.usage();
    let (images, containers) = mountpoints(engine);
    let (bytes, inodes) = if images == containers {
        (usage.bytes, usage.inodes)
    } else {
        engine.written()
    };
    v1::ImageFsInfoResponse {
        image_filesystems: vec![filesystem(images, usage.bytes, usage.inodes)],
        container_filesystems: vec![filesystem(containers, bytes, inodes)],
    }
}

/// Where images and containers are kept. On one file system, as long as nobody mounted another below the state
/// directory, both have one name: the kubelet takes two names for two file systems to be watched apart.
pub(super) fn mountpoints(engine: &Engine) -> (String, String) {
    let (images, containers) = (engine.images.layers_dir(), engine.state.records().pods_dir());
    let device = |path: &Path| path.metadata().ok().map(|m| m.dev());
    let state_dir = &engine.config.state_dir;
    let [images, containers] = if device(images) == device(&containers) {
        [state_dir.as_path(), state_dir.as_path()]
    } else {
        [images, containers.as_path()]
    };
    (images.display().to_string(), containers.display().to_string())
}

fn image_name(image: Option<v1::ImageSpec>) -> Result<String, Fault> {
    let name = image.map(|i| i.image).unwrap_or_default();
    if name.is_empty() {
        Err(Fault::invalid("image.image", "must not be empty"))
    } else {
        Ok(name)
    }
}

/// What a client sent along, where it is meant for the registry in question: a kubelet may hold credentials for
/// one host and name an image of another.
fn credentials(sent: v1::AuthConfig, host: &str) -> Result<Option<Auth>, Fault> {
    if !sent.server_address.is_empty() && registry_host(&sent.server_address) != registry_host(host) {
        tracing::debug!(
            meant_for = sent.server_address,
            host,
            "credentials for another registry are not used"
        );
        return Ok(None);
    }
    if !sent.registry_token.is_empty() {
        return Ok(Some(Auth::RegistryToken(sent.registry_token)));
    }
    if !sent.identity_token.is_empty() {
        return Ok(Some(Auth::IdentityToken(sent.identity_token)));
    }
    if !sent.username.is_empty() {
        return Ok(Some(Auth::basic(sent.username, sent.password)));
    }
    if sent.auth.is_empty() {
        Ok(None)
    } else {
        Ok(Some(Auth::from_encoded(&sent.auth)?))
    }
}

/// The host in the address of a registry, which may be a URL; Docker Hub goes by three names.
fn registry_host(address: &str) -> &str {
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    match host.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// An image as the CRI shows it.
fn message(engine: &Engine, image: &Image) -> v1::Image {
    let (uid, username) = user(&image.config.config.user);
    let name = image.repo_tags.first().or_else(|| image.repo_digests.first());
    let spec = v1::ImageSpec {
        image: name.cloned().unwrap_or_else(|| image.id.to_string()),
        annotations: image.config.config.labels.clone().into_iter().collect(),
        ..Default::default()
    };
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: Some(spec),
        pinned: image.pinned || is_pinned(&engine.config.images.pinned, image),
    }
}

/// Whether the configuration names an image by one of its names.
fn is_pinned(pinned: &[String], image: &Image) -> bool {
    pinned
        .iter()
        .filter_map(|name| Reference::parse(name).ok())
        .any(|reference| {
            // With its tag or digest, and the registry that it means where it names none.
            let name = reference.to_string();
            image.repo_tags.contains(&name) || image.repo_digests.contains(&name)
        })
}

/// The image's user as the CRI wants it: a number or a name. The group behind a colon is not told, and no user
/// at all is root.
fn user(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) => (Some(uid.into()), String::new()),
        Err(_) if user.is_empty() => (Some(0), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

async fn verbose(engine: &Arc<Engine>, image: &Image) -> Result<String, Fault> {
    let (engine, id) = (Arc::clone(engine), image.id.clone());
    let text = blocking("ImageStatus", move || engine.images.config_json(&id))
        .await
        .map_err(Arc::new)?;
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or(serde_json::Value::Null);
    Ok(serde_json::json!({ "imageSpec": config, "layers": image.layers }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_pinned_by_any_of_its_names() {
        let image = Image {
            id: podd_images::ImageId::parse(&"0".repeat(64)).unwrap(),
            layers: vec![1],
            repo_tags: vec![
                "docker.io/library/a:1".to_owned(),
                "quay.io/b/c:latest".to_owned(),
            ],
            repo_digests: vec![format!("quay.io/b/c@sha256:{}", "1".repeat(64))],
            size: 1,
            pinned: false,
            config: Arc::default(),
        };
        let digest = &image.repo_digests[0];
        for (name, pins) in [
            ("docker.io/library/a:1", true),
            ("a:1", true),
            ("quay.io/b/c", true),
            (digest.as_str(), true),
            ("a", false),
            ("a:2", false),
            ("quay.io/b/c:1", false),
            ("not a reference", false),
        ] {
            assert_eq!(is_pinned(&[name.to_owned()], &image), pins, "{name}");
        }
    }

    #[test]
    fn credentials_go_to_their_own_registry_only() {
        let sent = |server: &str| v1::AuthConfig {
            username: "u".to_owned(),
            password: "p".to_owned(),
            server_address: server.to_owned(),
            ..Default::default()
        };
        for (server, host, used) in [
            ("", "a.b:5000", true),
            ("a.b:5000", "a.b:5000", true),
            ("https://a.b:5000/v2/", "a.b:5000", true),
            ("https://index.docker.io/v1/", "docker.io", true),
            ("a.b", "a.b:5000", false),
            ("https://evil.example", "docker.io", false),
        ] {
            assert_eq!(
                credentials(sent(server), host).unwrap().is_some(),
                used,
                "{server} {host}"
            );
        }
    }

    #[test]
    fn every_kind_of_credentials_is_understood() {
        let empty = v1::AuthConfig::default();
        let of = |auth: v1::AuthConfig| credentials(auth, "a.b").unwrap();
        assert_eq!(of(empty.clone()), None);
        let auth = v1::AuthConfig {
            auth: "dTpw".to_owned(),
            ..empty.clone()
        };
        assert_eq!(of(auth), Some(Auth::basic("u", "p")));
        let token = v1::AuthConfig {
            registry_token: "t".to_owned(),
            ..empty.clone()
        };
        assert_eq!(of(token), Some(Auth::RegistryToken("t".to_owned())));
        let token = v1::AuthConfig {
            identity_token: "t".to_owned(),
            ..empty.clone()
        };
        assert_eq!(of(token), Some(Auth::IdentityToken("t".to_owned())));
        assert!(
            credentials(
                v1::AuthConfig {
                    auth: "?".to_owned(),
                    ..empty
                },
                "a.b"
            )
            .is_err()
        );
    }

    #[test]
    fn users_are_numbers_or_names() {
        for (text, uid, name) in [
            ("", Some(0), ""),
            ("0", Some(0), ""),
            ("1000", Some(1000), ""),
            ("1000:1000", Some(1000), ""),
            ("www-data", None, "www-data"),
            ("www-data:adm", None, "www-data"),
        ] {
            assert_eq!(user(text), (uid, name.to_owned()), "{text}");
        }
    }
}
