//! The span of a call to a key service.
#![forbid(unsafe_code)]

use std::future::Future;

use super::Operation;
use crate::error::ErrorKind;
use crate::format::KekId;
#[cfg(feature = "tracing")]
use crate::sync::foreign::{Contained, caught};

/// A span around one call to a key service, in the words of OpenTelemetry's semantic conventions:
/// `otel.kind` is *client*, and `error.type` holds the kind of a failure. Without the feature
/// `tracing` it does nothing.
///
/// A subscriber is foreign code that may panic on a thread that ends. Then there is no span.
pub(crate) struct CallSpan {
    #[cfg(feature = "tracing")]
    span: Option<tracing::Span>,
}

#[cfg(feature = "tracing")]
impl CallSpan {
    pub(crate) fn new(kek_id: &KekId, operation: Operation) -> Self {
        let span = caught(|| {
            tracing::debug_span!(
                target: "waxseal",
                "waxseal.call",
                otel.kind = "client",
                waxseal.kek.id = %kek_id,
                waxseal.operation = operation.as_str(),
                error.type = tracing::field::Empty,
            )
        });
        Self { span }
    }

    pub(crate) fn none() -> Self {
        Self { span: None }
    }

    pub(crate) async fn around<F: Future>(&self, call: F) -> F::Output {
        let mut call = std::pin::pin!(call);
        std::future::poll_fn(|cx| {
            let entered = self.span.as_ref().and_then(|span| caught(|| span.enter()));
            // Exited on drop, even while the call unwinds.
            let _entered = entered.map(Contained::new);
            call.as_mut().poll(cx)
        })
        .await
    }

    pub(crate) fn ended(&self, kind: Option<ErrorKind>) {
        if let (Some(span), Some(kind)) = (&self.span, kind) {
            caught(|| _ = span.record("error.type", kind.as_str()));
        }
    }
}

#[cfg(feature = "tracing")]
impl Drop for CallSpan {
    fn drop(&mut self) {
        let span = self.span.take();
        caught(|| drop(span));
    }
}

#[cfg(not(feature = "tracing"))]
impl CallSpan {
    pub(crate) fn new(_: &KekId, _: Operation) -> Self {
        Self {}
    }

    pub(crate) fn none() -> Self {
        Self {}
    }

    pub(crate) fn around<F: Future>(&self, call: F) -> F {
        call
    }

    pub(crate) fn ended(&self, _: Option<ErrorKind>) {}
}
