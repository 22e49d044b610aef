//! Holds the compiled contract to `surface.txt`, in both directions: a missing, extra or altered
//! call, enum value, message or field fails with the lines that differ.

use std::collections::{BTreeMap, BTreeSet};

use podd_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

const EXPECTED: &str = include_str!("surface.txt");
const PACKAGE: &str = "runtime.v1";

/// `google.protobuf.FieldOptions.debug_redact`, which prost-types does not know yet: the same bytes
/// read through messages that declare nothing but the way to it.
mod redact {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Set {
        #[prost(message, repeated, tag = "1")]
        pub files: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct File {
        #[prost(message, repeated, tag = "4")]
        pub messages: Vec<Message>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Message {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub fields: Vec<Field>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Field {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, optional, tag = "8")]
        pub options: Option<Options>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Options {
        #[prost(bool, tag = "16")]
        pub debug_redact: bool,
    }
}

/// Writes a descriptor set in the lines of `surface.txt`.
#[derive(Default)]
struct Surface {
    lines: BTreeSet<String>,
    secrets: BTreeSet<(String, String)>,
}

impl Surface {
    fn of(encoded: &[u8]) -> Self {
        let set = FileDescriptorSet::decode(encoded).expect("the build script wrote a descriptor set");
        let redact = redact::Set::decode(encoded).expect("the same bytes");
        let mut surface = Self::default();
        for message in redact.files.into_iter().flat_map(|file| file.messages) {
            for field in message.fields {
                if field.options.is_some_and(|options| options.debug_redact) {
                    surface.secrets.insert((message.name.clone(), field.name));
                }
            }
        }
        for file in set.file {
            assert_eq!(file.package(), PACKAGE, "{}", file.name());
            assert_eq!(file.syntax(), "proto3", "{}", file.name());
            file.service.iter().for_each(|service| surface.service(service));
            file.enum_type
                .iter()
                .for_each(|enumeration| surface.enumeration("", enumeration));
            file.message_type
                .iter()
                .for_each(|message| surface.message("", message));
        }
        surface
    }

    fn service(&mut self, service: &ServiceDescriptorProto) {
        for rpc in &service.method {
            let (from, to) = (local(rpc.input_type()), local(rpc.output_type()));
            let from = if rpc.client_streaming() {
                format!("stream {from}")
            } else {
                from.to_owned()
            };
            let to = if rpc.server_streaming() {
                format!("stream {to}")
            } else {
                to.to_owned()
            };
            self.lines
                .insert(format!("rpc {}.{} {from} -> {to}", service.name(), rpc.name()));
        }
    }

    fn enumeration(&mut self, scope: &str, enumeration: &EnumDescriptorProto) {
        for value in &enumeration.value {
            let name = enumeration.name();
            self.lines
                .insert(format!("enum {scope}{name} {} {}", value.number(), value.name()));
        }
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}{}", message.name());
        let inner = format!("{name}.");
        let (maps, nested): (Vec<_>, Vec<_>) = message
            .nested_type
            .iter()
            .partition(|nested| nested.options.as_ref().is_some_and(|o| o.map_entry()));
        let maps = maps
            .into_iter()
            .map(|entry| (format!("{inner}{}", entry.name()), map_type(entry)))
            .collect();

        self.lines.insert(format!("message {name}"));
        for field in &message.field {
            self.field(&name, field, &maps);
        }
        message
            .enum_type
            .iter()
            .for_each(|enumeration| self.enumeration(&inner, enumeration));
        nested.into_iter().for_each(|nested| self.message(&inner, nested));
    }

    fn field(&mut self, message: &str, field: &FieldDescriptorProto, maps: &BTreeMap<String, String>) {
        let ty = match maps.get(local(field.type_name())) {
            Some(map) => map.clone(),
            None if field.label() == Label::Repeated => format!("repeated {}", scalar_or_name(field)),
            None => scalar_or_name(field),
        };
        let mut line = format!("field {message} {} {} {ty}", field.number(), field.name());
        if field.oneof_index.is_some() {
            line.push_str(if field.proto3_optional() {
                " optional"
            } else {
                " oneof"
            });
        }
        if field.options.as_ref().is_some_and(|options| options.deprecated()) {
            line.push_str(" deprecated");
        }
        if self
            .secrets
            .contains(&(message.to_owned(), field.name().to_owned()))
        {
            line.push_str(" secret");
        }
        self.lines.insert(line);
    }
}

/// A type's name without the leading package.
fn local(name: &str) -> &str {
    name.strip_prefix('.')
        .and_then(|name| name.strip_prefix(PACKAGE))
        .and_then(|name| name.strip_prefix('.'))
        .unwrap_or(name)
}

fn map_type(entry: &DescriptorProto) -> String {
    let parts: Vec<_> = entry.field.iter().map(scalar_or_name).collect();
    format!("map<{}>", parts.join(","))
}

fn scalar_or_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

/// Lines of one set that the other lacks, each with a mark.
fn difference(mark: char, of: &BTreeSet<String>, to: &BTreeSet<String>) -> Vec<String> {
    of.difference(to).map(|line| format!("{mark} {line}")).collect()
}

#[test]
fn descriptor_set_matches_the_table() {
    let expected: BTreeSet<String> = EXPECTED
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let actual = Surface::of(FILE_DESCRIPTOR_SET).lines;

    let mut differences = difference('-', &expected, &actual);
    differences.extend(difference('+', &actual, &expected));
    assert!(
        differences.is_empty(),
        "the .proto files differ from tests/surface.txt (- only in the table, + only in the files):\n{}",
        differences.join("\n")
    );
}

#[test]
fn the_table_is_whole() {
    let count = |prefix: &str| EXPECTED.lines().filter(|line| line.starts_with(prefix)).count();
    assert_eq!(count("rpc RuntimeService."), 37);
    assert_eq!(count("rpc ImageService."), 6);
    assert_eq!(count("message "), 175);
}
