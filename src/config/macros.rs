//! The macro that declares settings.

/// Declares the settings of one section as a struct, and how it is taken from a `Resolver`:
///
/// ```text
/// settings! {
///     /// What the section is about.
///     pub struct Limits in "limits.door" {
///         /// What the setting does, and why its default is what it is.
///         guests_max: usize = 10, in 1..=1_000;
///     }
/// }
/// ```
///
/// A default can name the settings above it. What is no setting of the section follows it `with` a
/// name for the resolver.
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        $visibility:vis struct $struct:ident in $section:tt {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $default:expr $(, in $bounds:expr)?;
            )+
        }
        $(with $resolver:ident {
            $(
                $(#[doc = $part_doc:literal])+
                $part:ident: $part_type:ty = $part_value:expr;
            )+
        })?
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        $visibility struct $struct {
            $(
                $(#[doc = $doc])+
                pub $field: $type,
            )+
            $($(
                $(#[doc = $part_doc])+
                pub $part: $part_type,
            )+)?
        }

        impl $struct {
            /// Takes the settings in this order.
            pub(in $crate::config) fn take(
                resolver: &mut $crate::config::resolver::Resolver<'_>,
            ) -> Self {
                const SECTION: $crate::config::Section = $crate::config::Section {
                    name: $section,
                    about: &[$($about),+],
                };
                $(
                    let $field = {
                        const NAME: $crate::config::Name = $crate::config::Name {
                            section: SECTION,
                            name: stringify!($field),
                            key: settings!(@key $section $field),
                            doc: &[$($doc),+],
                        };
                        settings!(@take resolver, NAME, $default $(, $bounds)?)
                    };
                )+
                $(
                    let $resolver = resolver;
                    $(let $part = $part_value;)+
                )?
                Self { $($field,)+ $($($part,)+)? }
            }
        }
    };
    (@key "" $field:ident) => { stringify!($field) };
    (@key $section:tt $field:ident) => { concat!($section, ".", stringify!($field)) };
    (@take $resolver:ident, $name:expr, $default:expr) => {
        $resolver.take($name, $default)
    };
    (@take $resolver:ident, $name:expr, $default:expr, $bounds:expr) => {
        $resolver.take_in($name, $default, $bounds)
    };
}
pub(super) use settings;
