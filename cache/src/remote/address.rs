//! Where a remote is: from the URL as typed and variables of the environment to a client.
//!
//! Credentials and endpoints come from the variables alone, under the names that each provider's own tools use; none is
//! accepted in the URL, where it would end up in shell histories and logs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::error::{says_denied, says_no_bucket, told};
use super::{RemoteError, RemoteOptions, Result};

/// What kind of place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    S3,
    Google,
    Azure,
    Folder,
}

/// A remote's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// As given.
    pub(super) url: String,
    provider: Provider,
    /// The bucket, the container or the folder.
    place: String,
    /// Below what key everything lies.
    pub(super) prefix: Path,
}

const FORMS: &str =
    "write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///FOLDER or the path of a folder";

impl Provider {
    fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" | "s3a" => Some(Self::S3),
            "gs" => Some(Self::Google),
            "az" | "abfs" | "abfss" => Some(Self::Azure),
            "file" => Some(Self::Folder),
            _ => None,
        }
    }

    /// One of these variables must be set, so that nobody waits for a metadata server that is not there.
    fn credentials(self) -> &'static [&'static str] {
        match self {
            Self::S3 => &[
                "AWS_ACCESS_KEY_ID",
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "AWS_METADATA_ENDPOINT",
                "AWS_SKIP_SIGNATURE",
            ],
            Self::Google => &[
                "GOOGLE_APPLICATION_CREDENTIALS",
                "GOOGLE_SERVICE_ACCOUNT",
                "GOOGLE_SERVICE_ACCOUNT_PATH",
                "GOOGLE_SERVICE_ACCOUNT_KEY",
                "GOOGLE_BEARER_TOKEN",
                "GOOGLE_SKIP_SIGNATURE",
            ],
            Self::Azure => &[
                "AZURE_STORAGE_ACCOUNT_KEY",
                "AZURE_STORAGE_ACCESS_KEY",
                "AZURE_STORAGE_SAS_KEY",
                "AZURE_STORAGE_SAS_TOKEN",
                "AZURE_STORAGE_TOKEN",
                "AZURE_STORAGE_CLIENT_SECRET",
                "AZURE_CLIENT_SECRET",
                "AZURE_FEDERATED_TOKEN_FILE",
                "AZURE_MSI_ENDPOINT",
                "AZURE_USE_AZURE_CLI",
                "AZURE_SKIP_SIGNATURE",
                "AZURE_STORAGE_USE_EMULATOR",
            ],
            Self::Folder => &[],
        }
    }

    fn credentials_to_set(self) -> &'static str {
        match self {
            Self::S3 => {
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (on a machine with a role AWS_METADATA_ENDPOINT=http://169.254.169.254, for a public bucket AWS_SKIP_SIGNATURE=true)"
            }
            Self::Google => {
                "GOOGLE_APPLICATION_CREDENTIALS to a key file (for a public bucket GOOGLE_SKIP_SIGNATURE=true)"
            }
            Self::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN)",
            Self::Folder => "nothing",
        }
    }

    fn help_absent(self) -> &'static str {
        match self {
            Self::S3 => "create it, or check the name, AWS_REGION and AWS_ENDPOINT_URL",
            Self::Google => "create it, or check the name and GOOGLE_BASE_URL",
            Self::Azure => "create it, or check the name, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT",
            Self::Folder => "create it, or check the path and that its disk is mounted",
        }
    }

    fn help_denied(self) -> &'static str {
        match self {
            Self::S3 => {
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and that they may list and read there and, for a push, write"
            }
            Self::Google => {
                "check GOOGLE_APPLICATION_CREDENTIALS, and that it may list and read there and, for a push, write"
            }
            Self::Azure => {
                "check AZURE_STORAGE_ACCOUNT_NAME and its key or token, and that it may list and read there and, for a push, write"
            }
            Self::Folder => "check the permissions of the folder",
        }
    }

    fn help_failed(self) -> &'static str {
        match self {
            Self::S3 => "check the network and AWS_ENDPOINT_URL",
            Self::Google => "check the network and GOOGLE_BASE_URL",
            Self::Azure => "check the network and AZURE_STORAGE_ENDPOINT",
            Self::Folder => "check the folder's disk and permissions",
        }
    }
}

impl Address {
    /// Reads a URL, or the path of a folder.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let wrong = |why: &str| RemoteError::Url { url: url.to_owned(), why: why.to_owned() };
        let Some((scheme, rest)) = url.split_once("://") else {
            if url.is_empty() {
                return Err(wrong(FORMS));
            }
            return Self::folder(url, url);
        };
        let provider = Provider::of(scheme).ok_or_else(|| wrong(FORMS))?;
        if provider == Provider::Folder {
            return if rest.starts_with('/') { Self::folder(url, rest) } else { Err(wrong("write file:///FOLDER")) };
        }
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let has_login = authority.contains('@') && !scheme.starts_with("abfs");
        if has_login || authority.contains(':') {
            return Err(wrong("credentials and ports do not belong in it; set the provider's variables instead"));
        }
        if rest.contains(['?', '#']) {
            return Err(wrong("it has a query or a fragment; only a bucket and a prefix belong in it"));
        }
        if authority.is_empty() {
            return Err(wrong(FORMS));
        }
        let place = authority.split('@').next().unwrap_or(authority).to_owned();
        let prefix = Path::parse(prefix.trim_matches('/')).map_err(|error| wrong(&told(&error)))?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), provider, place, prefix })
    }

    fn folder(url: &str, path: &str) -> Result<Self> {
        let absolute = std::path::absolute(path);
        let absolute = absolute.map_err(|error| RemoteError::Url { url: url.to_owned(), why: error.to_string() })?;
        let place = absolute.to_string_lossy().into_owned();
        Ok(Self { url: url.to_owned(), provider: Provider::Folder, place, prefix: Path::default() })
    }

    /// A client for it.
    pub(super) fn client(&self, options: &RemoteOptions) -> Result<Arc<dyn ObjectStore>> {
        let is_set = |name: &&str| options.variables.iter().any(|(set, value)| set == name && !value.is_empty());
        let wanted = self.provider.credentials();
        if !wanted.is_empty() && !wanted.iter().any(is_set) {
            return Err(RemoteError::NoCredentials { url: self.url.clone(), set: self.provider.credentials_to_set() });
        }
        if self.provider == Provider::Folder && !PathBuf::from(&self.place).is_dir() {
            return Err(self.absent());
        }
        let http = client_options(&options.variables);
        let built = self.build(&options.variables, options.patience, http.clone());
        // A machine without CA certificates can still speak plain HTTP.
        let built = match built {
            Err(_) if speaks_plain(&options.variables) => {
                self.build(&options.variables, options.patience, http.with_no_system_certificates(true))
            }
            built => built,
        };
        let help = "check the provider's variables, and that the system has CA certificates (package ca-certificates)";
        built.map_err(|error| RemoteError::Client { url: self.url.clone(), why: told(&error), help })
    }

    fn build(
        &self,
        variables: &[(String, String)],
        patience: Duration,
        http: ClientOptions,
    ) -> object_store::Result<Arc<dyn ObjectStore>> {
        let retry = retry(patience);
        // The builders know many variables and read none themselves; a name that they do not know is not theirs.
        macro_rules! cloud {
            ($builder:ty) => {{
                let builder = <$builder>::new().with_client_options(http).with_retry(retry);
                let builder =
                    variables.iter().fold(builder, |builder, (name, value)| match name.to_ascii_lowercase().parse() {
                        Ok(key) => builder.with_config(key, value),
                        Err(_) => builder,
                    });
                Ok(Arc::new(builder.with_url(&self.url).build()?))
            }};
        }
        match self.provider {
            Provider::S3 => cloud!(AmazonS3Builder),
            Provider::Google => cloud!(GoogleCloudStorageBuilder),
            Provider::Azure => cloud!(MicrosoftAzureBuilder),
            Provider::Folder => Ok(Arc::new(LocalFileSystem::new_with_prefix(&self.place)?)),
        }
    }

    /// The bucket is not there.
    fn absent(&self) -> RemoteError {
        let place = match self.provider {
            Provider::Folder => format!("folder {}", self.place),
            Provider::Azure => format!("container `{}`", self.place),
            Provider::S3 | Provider::Google => format!("bucket `{}`", self.place),
        };
        RemoteError::NoBucket { url: self.url.clone(), place, help: self.provider.help_absent() }
    }

    /// What a failed request means.
    pub(super) fn explain(&self, op: &str, key: &str, error: &object_store::Error) -> RemoteError {
        let detail = told(error);
        let (url, op) = (self.url.clone(), format!("{op} {key}"));
        if says_no_bucket(&detail) {
            return self.absent();
        }
        let denied =
            matches!(error, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. });
        if denied || says_denied(&detail) {
            return RemoteError::Denied { url, op, detail, help: self.provider.help_denied() };
        }
        RemoteError::Failed { url, op, detail, help: self.provider.help_failed() }
    }
}

/// Who names an endpoint that begins with `http:` wants plain HTTP.
fn speaks_plain(variables: &[(String, String)]) -> bool {
    let endpoint = |name: &str| name.contains("ENDPOINT") || name == "GOOGLE_BASE_URL";
    variables.iter().any(|(name, value)| endpoint(name) && value.starts_with("http:"))
}

fn client_options(variables: &[(String, String)]) -> ClientOptions {
    // The client takes the process's provider of TLS; an error says that one is installed already, which will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A part of 8 MiB may take its time on a slow line; a server that says nothing for a minute is gone.
    ClientOptions::new()
        .with_allow_http(speaks_plain(variables))
        .with_connect_timeout(Duration::from_secs(5))
        .with_read_timeout(Duration::from_secs(60))
        .with_timeout(Duration::from_secs(300))
}

fn retry(patience: Duration) -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(3), base: 2.0 };
    RetryConfig { backoff, max_retries: 1000, retry_timeout: patience }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(url: &str) -> (Provider, String, String) {
        let address = Address::parse(url).unwrap();
        (address.provider, address.place.clone(), address.prefix.to_string())
    }

    #[test]
    fn urls_name_a_provider_a_place_and_a_prefix() {
        let table = [
            ("s3://lab/mpcc/v1/", (Provider::S3, "lab", "mpcc/v1")),
            ("s3://lab", (Provider::S3, "lab", "")),
            ("gs://lab/x", (Provider::Google, "lab", "x")),
            ("az://box/x", (Provider::Azure, "box", "x")),
            ("abfss://box@account.dfs.core.windows.net/x", (Provider::Azure, "box", "x")),
            ("file:///srv/cache", (Provider::Folder, "/srv/cache", "")),
            ("/srv/cache", (Provider::Folder, "/srv/cache", "")),
        ];
        for (url, (provider, place, prefix)) in table {
            assert_eq!(parts(url), (provider, place.to_owned(), prefix.to_owned()), "{url}");
        }
    }

    #[test]
    fn what_is_no_remote_is_refused_with_what_would_be() {
        let table = [
            ("", "s3://BUCKET"),
            ("ftp://host/x", "s3://BUCKET"),
            ("https://host/x", "s3://BUCKET"),
            ("s3:///x", "s3://BUCKET"),
            ("file://srv", "file:///FOLDER"),
            ("s3://key:secret@lab/x", "variables"),
            ("s3://key@lab/x", "variables"),
            ("abfss://box:key@account/x", "variables"),
            ("s3://lab/x?region=y", "query"),
            ("s3://lab/a//b", "a//b"),
        ];
        for (url, expected) in table {
            let error = Address::parse(url).unwrap_err();
            assert!(error.is_wrong() && error.to_string().contains(expected), "{url}: {error}");
        }
    }

    #[test]
    fn credentials_that_are_not_there_are_named() {
        for (url, name) in
            [("s3://lab", "AWS_SECRET_ACCESS_KEY"), ("gs://lab", "GOOGLE_APPLICATION"), ("az://lab", "AZURE_STORAGE")]
        {
            let error = Address::parse(url).unwrap().client(&RemoteOptions::default()).unwrap_err();
            assert!(error.is_wrong() && error.to_string().contains(name), "{error}");
        }
        let half = vec![("AWS_ACCESS_KEY_ID".to_owned(), "x".to_owned())];
        let options = RemoteOptions { variables: half, ..RemoteOptions::default() };
        let error = Address::parse("s3://lab").unwrap().client(&options).unwrap_err().to_string();
        assert!(error.to_lowercase().contains("secret"), "{error}");
    }

    #[test]
    fn every_provider_builds_a_client_from_its_variables() {
        let variables = |set: &[(&str, &str)]| set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let table: [(&str, Vec<(String, String)>); 3] = [
            (
                "s3://lab/x",
                variables(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_OTHER", "c")]),
            ),
            ("gs://lab/x", variables(&[("GOOGLE_SKIP_SIGNATURE", "true")])),
            ("az://box/x", variables(&[("AZURE_STORAGE_ACCOUNT_NAME", "a"), ("AZURE_STORAGE_ACCOUNT_KEY", "Yg==")])),
        ];
        for (url, variables) in table {
            let options = RemoteOptions { variables, ..RemoteOptions::default() };
            let client = Address::parse(url).unwrap().client(&options);
            assert!(client.is_ok(), "{url}: {}", client.unwrap_err());
        }
    }

    #[test]
    fn a_missing_bucket_and_refused_credentials_are_told_apart_from_an_absent_key() {
        let address = Address::parse("s3://lab/x").unwrap();
        let absent = |body: &str| object_store::Error::NotFound { path: "k".into(), source: body.into() };
        let text = |error| address.explain("read", "k", &error).to_string();
        assert!(text(absent("<Code>NoSuchBucket</Code>")).contains("no bucket `lab`"));
        assert!(text(absent("<Code>NoSuchKey</Code>")).starts_with("cannot read k"));
        let generic = |body: &str| object_store::Error::Generic { store: "S3", source: body.into() };
        assert!(text(generic("status 403 Forbidden: AccessDenied")).contains("AWS_SECRET_ACCESS_KEY"));
        assert!(text(generic("connection refused")).contains("AWS_ENDPOINT_URL"));
    }
}
