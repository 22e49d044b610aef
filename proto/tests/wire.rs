//! What the generated code must do on the wire beyond having the right numbers.

use podd_proto::v1::{
    ContainerConfig, CreateContainerRequest, KeyValue, image_service_server, runtime_service_server,
};
use prost::Message;

/// Secrets may hold anything; a string field would fail the whole request here.
#[test]
fn environment_need_not_be_utf8() {
    let envs = vec![KeyValue {
        key: "KEY".into(),
        value: vec![0xff, 0x00, 0xfe],
    }];
    let request = CreateContainerRequest {
        config: Some(ContainerConfig {
            envs,
            ..Default::default()
        }),
        ..Default::default()
    };
    let decoded = CreateContainerRequest::decode(request.encode_to_vec().as_slice());
    assert_eq!(decoded, Ok(request));
}

/// A newer kubelet may send fields that this contract does not have.
#[test]
fn unknown_fields_are_skipped() {
    // Field 200, a varint, after field 1.
    let bytes = [b"\x0a\x03pod".as_slice(), b"\xc0\x0c\x01"].concat();
    let decoded = CreateContainerRequest::decode(bytes.as_slice());
    assert_eq!(
        decoded,
        Ok(CreateContainerRequest {
            pod_sandbox_id: "pod".into(),
            ..Default::default()
        })
    );
}

/// The names are part of every request's path.
#[test]
fn services_have_their_names() {
    assert_eq!(image_service_server::SERVICE_NAME, "runtime.v1.ImageService");
    assert_eq!(runtime_service_server::SERVICE_NAME, "runtime.v1.RuntimeService");
}
