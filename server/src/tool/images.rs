//! `podd images`: what is in the local store.

use clap::Args;
use podd_proto::v1;
use serde::Serialize;

use super::cri::Cri;
use super::failure::Failure;
use super::screen::Screen;
use super::table::{self, Format, Table};
use super::text;

/// List images of the local store.
#[derive(Debug, Args)]
pub struct Images {
    /// Print whole ids only.
    #[arg(short, long)]
    quiet: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    id: String,
    tags: Vec<String>,
    digests: Vec<String>,
    size: u64,
    user: String,
    pinned: bool,
}

impl From<v1::Image> for Image {
    fn from(image: v1::Image) -> Self {
        Self {
            id: image.id,
            tags: image.repo_tags,
            digests: image.repo_digests,
            size: image.size,
            user: image.uid.map_or(image.username, |uid| uid.value.to_string()),
            pinned: image.pinned,
        }
    }
}

impl Images {
    /// Lists.
    ///
    /// # Errors
    /// podd does not answer, or the result cannot be written.
    pub fn run(self, cri: &Cri, screen: Screen) -> Result<(), Failure> {
        let images = cri.list_images(v1::ListImagesRequest::default())?.images;
        let mut images: Vec<Image> = images.into_iter().map(Image::from).collect();
        images.sort_by(|a, b| (&a.tags, &a.id).cmp(&(&b.tags, &b.id)));
        if self.quiet {
            return screen.print(&images.iter().map(|i| i.id.clone() + "\n").collect::<String>());
        }
        screen.print(&match self.output {
            Format::Json => table::json(&images),
            Format::Table => draw(&images).render(screen.width()),
        })
    }
}

/// One line for each name; an image without a tag has one by its digest.
fn draw(images: &[Image]) -> Table {
    let mut table = Table::new(&["IMAGE", "ID", ">SIZE", "PINNED"]);
    for image in images {
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let names = if image.tags.is_empty() {
            &image.digests
        } else {
            &image.tags
        };
        let unnamed = [String::new()];
        for name in if names.is_empty() { &unnamed[..] } else { names } {
            let pinned = if image.pinned { "yes" } else { "no" };
            table.row([name, text::short(id), &text::bytes(image.size), pinned]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_line() {
        let image = |tags: &[&str], digests: &[&str]| Image {
            id: "sha256:0123456789abcdef".to_owned(),
            tags: tags.iter().map(|&t| t.to_owned()).collect(),
            digests: digests.iter().map(|&d| d.to_owned()).collect(),
            size: 3 << 20,
            user: String::new(),
            pinned: false,
        };
        let images = [
            image(&["a:1", "b:1"], &["a@sha256:1"]),
            image(&[], &["c@sha256:2"]),
            image(&[], &[]),
        ];
        let text = draw(&images).render(None);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[2], "b:1         0123456789abc  3.0 MiB  no");
        assert!(
            lines[3].starts_with("c@sha256:2") && lines[4].starts_with("-"),
            "{text}"
        );
    }
}
