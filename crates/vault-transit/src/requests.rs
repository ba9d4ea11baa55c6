//! The requests about DEKs: one, many, a new one.
#![forbid(unsafe_code)]

use std::sync::Arc;

use base64ct::{Base64, Encoding};
use zeroize::Zeroizing;

use crate::endpoints::{Answer, Item, SecretText, Wrapped, WrappedBatch, data_key, many, one};
use crate::errors::{Failure, classify_item};
use crate::format::VaultCiphertext;
use crate::inner::Inner;
use crate::key::Binding;
use crate::transport::SMALL;
use waxseal::EncryptionContext;
use waxseal::kek::UnwrappedDek;
use waxseal::kek::toolkit::report_request_id;
use waxseal::{Dek, WrappedDek};

/// The maximum number of items in one request: the server's default limit is 1,000 strings, and an
/// item has six.
pub(crate) const BATCH_ITEMS: usize = 128;
/// The maximum size of one request's contexts and ciphertexts in bytes. The server's default limit
/// is 32 MiB.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Wrap,
    Unwrap,
    Rewrap,
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Rewrap => "rewrap",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Wrap => "encrypt",
            Self::Unwrap => "decrypt",
            Self::Rewrap => "rewrap",
        }
    }
}

/// One item of a request: a DEK in base64, or a ciphertext.
pub(crate) struct Input {
    pub(crate) text: Zeroizing<String>,
    pub(crate) context: EncryptionContext,
}

impl Inner {
    pub(crate) async fn single(
        self: &Arc<Self>,
        operation: Operation,
        input: &Input,
    ) -> Result<Wrapped, Failure> {
        let binding = self.known().await?.binding;
        let encoded = encode_context(binding, &input.context);
        let request = one(
            &self.mount,
            operation.verb(),
            &self.key,
            item(operation, binding, input, encoded.as_deref(), None),
        );
        let reply = self.call(operation.name(), &request, SMALL).await?;
        let answer =
            reply.success::<Wrapped>(operation.name()).map_err(|failure| self.note(failure))?;
        report(answer.request_id.as_deref());
        answer.data.ok_or_else(|| Failure::not_understood(operation.name()))
    }

    pub(crate) async fn batch(
        self: &Arc<Self>,
        operation: Operation,
        inputs: &[Input],
    ) -> Vec<Result<Wrapped, Failure>> {
        let binding = match self.known().await {
            Ok(known) => known.binding,
            Err(failure) => return inputs.iter().map(|_| Err(failure.clone())).collect(),
        };
        let mut results = Vec::with_capacity(inputs.len());
        let mut rest = inputs;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(items_of_one_request(rest));
            rest = later;
            match self.one_batch(operation, binding, now).await {
                Ok(answers) => results.extend(answers),
                Err(failure) => results.extend(now.iter().map(|_| Err(failure.clone()))),
            }
        }
        results
    }

    /// Returns one result per item, in order, whatever the status of the whole.
    async fn one_batch(
        &self,
        operation: Operation,
        binding: Binding,
        inputs: &[Input],
    ) -> Result<Vec<Result<Wrapped, Failure>>, Failure> {
        let name = operation.name();
        let contexts: Vec<_> =
            inputs.iter().map(|input| encode_context(binding, &input.context)).collect();
        let items = inputs.iter().zip(&contexts).enumerate();
        let items = items.map(|(i, (input, context))| {
            item(operation, binding, input, context.as_deref(), Some(i.to_string()))
        });
        let request = many(&self.mount, operation.verb(), &self.key, items.collect());
        let reply = self.call(name, &request, SMALL + inputs.len() * 16 * 1024).await?;
        // Some items failed, or none did. A failure of the whole has no results.
        let answer = reply.read::<Answer<WrappedBatch>>();
        report(answer.as_ref().and_then(|answer| answer.request_id.as_deref()));
        let batch = match answer.and_then(|answer| answer.data) {
            Some(batch) if reply.is_success() || reply.status == 400 => batch,
            _ if reply.is_success() => return Err(Failure::not_understood(name)),
            _ => return Err(self.note(reply.failure(name))),
        };
        let in_order = batch.batch_results.iter().enumerate().all(|(i, result)| {
            result.reference.as_deref().is_none_or(|reference| reference == i.to_string())
        });
        if batch.batch_results.len() != inputs.len() || !in_order {
            return Err(Failure::not_understood(name));
        }
        let result = |result: Wrapped| match result.error.as_deref() {
            Some(text) if !text.is_empty() => Err(self.note(classify_item(name, text))),
            _ => Ok(result),
        };
        Ok(batch.batch_results.into_iter().map(result).collect())
    }

    pub(crate) async fn generate(
        self: &Arc<Self>,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Failure> {
        let binding = self.known().await?.binding;
        let request = data_key(&self.mount, &self.key, encode_context(binding, context));
        let reply = self.call("generate", &request, SMALL).await?;
        let answer = reply.success::<Wrapped>("generate").map_err(|failure| self.note(failure))?;
        report(answer.request_id.as_deref());
        answer.data.ok_or_else(|| Failure::not_understood("generate"))
    }

    /// Makes the entry for a ciphertext that the server returned. Its claim about the key's version
    /// is trusted.
    pub(crate) fn wrapped(
        &self,
        operation: &str,
        ciphertext: Option<&str>,
    ) -> Result<WrappedDek, Failure> {
        let not_understood = || Failure::not_understood(operation);
        let bytes = ciphertext.ok_or_else(not_understood)?.as_bytes();
        let version = VaultCiphertext::read(bytes).ok_or_else(not_understood)?.version;
        let wrapped = WrappedDek::new(self.id.clone(), bytes).map_err(|_| not_understood())?;
        self.latest.learn_from_answer(version);
        Ok(wrapped)
    }
}

/// Returns how many of these fit into one request; at least one.
fn items_of_one_request(inputs: &[Input]) -> usize {
    let mut bytes = 0;
    let fits = inputs.iter().take(BATCH_ITEMS).take_while(|input| {
        bytes += input.text.len() + input.context.as_bytes().len() * 4 / 3;
        bytes <= BATCH_BYTES
    });
    fits.count().max(1).min(inputs.len())
}

fn item<'a>(
    operation: Operation,
    binding: Binding,
    input: &'a Input,
    context: Option<&'a str>,
    reference: Option<String>,
) -> Item<'a> {
    let text = Some(input.text.as_str());
    let (plaintext, ciphertext) =
        if operation == Operation::Wrap { (text, None) } else { (None, text) };
    let (context, associated_data) =
        if binding == Binding::Derived { (context, None) } else { (None, context) };
    Item { plaintext, ciphertext, context, associated_data, reference }
}

/// Joins the library's events with the server's audit log. Not called for a login, which may come
/// before in the same call.
fn report(request_id: Option<&str>) {
    if let Some(request_id) = request_id {
        report_request_id(request_id);
    }
}

/// Returns the context's canonical bytes, if they are sent to the server.
fn encode_context(binding: Binding, context: &EncryptionContext) -> Option<String> {
    (binding != Binding::Unbound).then(|| Base64::encode_string(context.as_bytes()))
}

/// Encodes a DEK in base64, in a buffer of its size.
pub(crate) fn encode_dek(dek: &Dek) -> Zeroizing<String> {
    Zeroizing::new(Base64::encode_string(dek.expose()))
}

/// Decodes a DEK of any length from base64. Nobody has checked it yet.
pub(crate) fn decode(text: Option<&SecretText>) -> Option<UnwrappedDek> {
    let text = text?;
    let mut bytes = UnwrappedDek::new(vec![0; text.0.len() / 4 * 3]);
    let len = Base64::decode(text.0.as_bytes(), bytes.expose_mut()).ok()?.len();
    match bytes.expose().get(..len) {
        Some(exact) if len < bytes.expose().len() => Some(UnwrappedDek::new(exact.to_vec())),
        _ => Some(bytes),
    }
}
