//! The span of a call to a key service.
#![forbid(unsafe_code)]

use std::future::Future;

use super::Operation;
use crate::error::ErrorKind;
use crate::format::KekId;

/// A span around one call to a key service, in the words of OpenTelemetry's semantic conventions:
/// `otel.kind` is *client*, and `error.type` has the kind of a failure. Nothing without the feature
/// `tracing`.
pub(crate) struct CallSpan {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

#[cfg(feature = "tracing")]
impl CallSpan {
    pub(crate) fn new(kek_id: &KekId, operation: Operation) -> Self {
        let span = tracing::debug_span!(
            target: "waxseal",
            "waxseal.call",
            otel.kind = "client",
            waxseal.kek.id = %kek_id,
            waxseal.operation = operation.as_str(),
            error.type = tracing::field::Empty,
        );
        Self { span }
    }

    pub(crate) fn around<F: Future>(&self, call: F) -> impl Future<Output = F::Output> + use<F> {
        tracing::Instrument::instrument(call, self.span.clone())
    }

    pub(crate) fn ended(&self, kind: Option<ErrorKind>) {
        if let Some(kind) = kind {
            self.span.record("error.type", kind.as_str());
        }
    }
}

#[cfg(not(feature = "tracing"))]
impl CallSpan {
    pub(crate) fn new(_: &KekId, _: Operation) -> Self {
        Self {}
    }

    pub(crate) fn around<F: Future>(&self, call: F) -> F {
        call
    }

    pub(crate) fn ended(&self, _: Option<ErrorKind>) {}
}
