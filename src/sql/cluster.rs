//! The same functions on a Ballista cluster: its scheduler and executors know them by these codecs.
//!
//! ```no_run
//! # async fn example() -> datafusion::error::Result<()> {
//! let ctx = orthant::sql::cluster::connect("127.0.0.1:50050").await?;
//! orthant::sql::register_file(&ctx, "notes", "/data/notes.parquet").await?;
//! ctx.sql("SELECT topic, vmf_fit(embedding) FROM notes GROUP BY topic").await?.show().await?;
//! # Ok(())
//! # }
//! ```
//!
//! `orthant-scheduler` and `orthant-executor` are [`serve_scheduler`] and [`serve_executor`] as programs. A scheduler that does not know the functions cannot plan
//! with them, so Ballista's own will not do. Stages, shuffles and retries are Ballista's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballista::prelude::SessionContextExt;
use ballista_core::extension::SessionConfigExt;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::serde::{BallistaLogicalExtensionCodec, BallistaPhysicalExtensionCodec};
use ballista_core::utils::default_session_builder;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::start_server;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::datasource::file_format::FileFormatFactory;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{FunctionRegistry, SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{AggregateUDF, Extension, LogicalPlan, ScalarUDF};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_proto::logical_plan::LogicalExtensionCodec;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};

use super::column::external;
use super::mixture_step::{self, MixtureStep};
use super::npy::{NpyExec, NpyTable};
use super::sample_rows::{self, SampleRows};
use super::top_k::TopK;
use super::vmf_fit::VmfFit;
use super::{register, scalar};
use crate::{Device, Error};

/// A message may be this long: a model of 1000 components in 32768 dimensions has 131 MB.
const MESSAGE: usize = 256 << 20;

/// How long to wait for a scheduler's first word.
const CONNECT: Duration = Duration::from_secs(5);

/// What tables and scans of `.npy` files begin with among messages; Ballista's own are protobuf, whose first byte is no letter o.
const NPY: &[u8] = b"orthant:npy:";

/// This crate's functions and tables in a plan's bytes; the rest is for Ballista's codec.
struct Codec<C> {
    inner: C,
    device: Device,
}

impl<C> fmt::Debug for Codec<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "orthant's codec on {}", self.device)
    }
}

impl<C> Codec<C> {
    fn scalar(&self, name: &str) -> Result<Arc<ScalarUDF>> {
        let found = scalar::all(&self.device).into_iter().find(|function| function.name() == name);
        found.map(Arc::new).ok_or_else(|| unknown(name))
    }

    fn aggregate(&self, name: &str, bytes: &[u8]) -> Result<Arc<AggregateUDF>> {
        let function = match name {
            "vmf_fit" => AggregateUDF::new_from_impl(VmfFit::new(&self.device)),
            "hamming_top_k" | "knn_top_k" => {
                let asked = match bytes {
                    [] => None,
                    bytes => Some(serde_json::from_slice(bytes).map_err(|error| {
                        external(Error::Format { what: "top_k in a plan", reason: error.to_string() })
                    })?),
                };
                AggregateUDF::new_from_impl(TopK::new(name == "knn_top_k", &self.device, asked))
            }
            sample_rows::NAME => AggregateUDF::new_from_impl(SampleRows::from_bytes(bytes)?),
            mixture_step::NAME => AggregateUDF::new_from_impl(MixtureStep::from_bytes(&self.device, bytes)?),
            _ => return Err(unknown(name)),
        };
        Ok(Arc::new(function))
    }
}

fn unknown(name: &str) -> DataFusionError {
    DataFusionError::Plan(format!("no function {name} is known here"))
}

/// What an aggregate has beside its name.
fn encode_aggregate(function: &AggregateUDF, bytes: &mut Vec<u8>) -> Result<()> {
    let inner = function.inner().as_ref() as &dyn std::any::Any;
    if let Some(top_k) = inner.downcast_ref::<TopK>() {
        if let Some(asked) = &top_k.asked {
            let json = serde_json::to_vec(asked);
            bytes.extend(json.map_err(|error| DataFusionError::Internal(error.to_string()))?);
        }
    } else if let Some(sample) = inner.downcast_ref::<SampleRows>() {
        bytes.extend(sample.to_bytes());
    } else if let Some(step) = inner.downcast_ref::<MixtureStep>() {
        bytes.extend(step.to_bytes());
    }
    Ok(())
}

impl LogicalExtensionCodec for Codec<BallistaLogicalExtensionCodec> {
    fn try_decode(&self, bytes: &[u8], inputs: &[LogicalPlan], ctx: &TaskContext) -> Result<Extension> {
        self.inner.try_decode(bytes, inputs, ctx)
    }

    fn try_encode(&self, node: &Extension, bytes: &mut Vec<u8>) -> Result<()> {
        self.inner.try_encode(node, bytes)
    }

    fn try_decode_table_provider(
        &self,
        bytes: &[u8],
        table: &TableReference,
        schema: SchemaRef,
        ctx: &TaskContext,
    ) -> Result<Arc<dyn TableProvider>> {
        match bytes.strip_prefix(NPY) {
            Some(path) => Ok(Arc::new(NpyTable::open(String::from_utf8_lossy(path).as_ref().as_ref())?)),
            None => self.inner.try_decode_table_provider(bytes, table, schema, ctx),
        }
    }

    fn try_encode_table_provider(
        &self,
        table: &TableReference,
        node: Arc<dyn TableProvider>,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        match (node.as_ref() as &dyn std::any::Any).downcast_ref::<NpyTable>() {
            Some(npy) => {
                bytes.extend_from_slice(NPY);
                bytes.extend_from_slice(npy.path().to_string_lossy().as_bytes());
                Ok(())
            }
            None => self.inner.try_encode_table_provider(table, node, bytes),
        }
    }

    fn try_decode_file_format(&self, bytes: &[u8], ctx: &TaskContext) -> Result<Arc<dyn FileFormatFactory>> {
        self.inner.try_decode_file_format(bytes, ctx)
    }

    fn try_encode_file_format(&self, bytes: &mut Vec<u8>, node: Arc<dyn FileFormatFactory>) -> Result<()> {
        self.inner.try_encode_file_format(bytes, node)
    }

    fn try_decode_udf(&self, name: &str, _: &[u8]) -> Result<Arc<ScalarUDF>> {
        self.scalar(name)
    }

    fn try_decode_udaf(&self, name: &str, bytes: &[u8]) -> Result<Arc<AggregateUDF>> {
        self.aggregate(name, bytes)
    }

    fn try_encode_udaf(&self, function: &AggregateUDF, bytes: &mut Vec<u8>) -> Result<()> {
        encode_aggregate(function, bytes)
    }
}

impl PhysicalExtensionCodec for Codec<BallistaPhysicalExtensionCodec> {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match bytes.strip_prefix(NPY) {
            Some(scan) => Ok(Arc::new(NpyExec::from_bytes(scan)?)),
            None => self.inner.try_decode(bytes, inputs, ctx, converter),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        match node.downcast_ref::<NpyExec>() {
            Some(scan) => {
                bytes.extend_from_slice(NPY);
                bytes.extend(scan.to_bytes());
                Ok(())
            }
            None => self.inner.try_encode(node, bytes, converter),
        }
    }

    fn try_decode_udf(&self, name: &str, _: &[u8]) -> Result<Arc<ScalarUDF>> {
        self.scalar(name)
    }

    fn try_decode_udaf(&self, name: &str, bytes: &[u8]) -> Result<Arc<AggregateUDF>> {
        self.aggregate(name, bytes)
    }

    fn try_encode_udaf(&self, function: &AggregateUDF, bytes: &mut Vec<u8>) -> Result<()> {
        encode_aggregate(function, bytes)
    }
}

fn logical(device: &Device) -> Arc<dyn LogicalExtensionCodec> {
    Arc::new(Codec { inner: BallistaLogicalExtensionCodec::default(), device: device.clone() })
}

fn physical(device: &Device) -> Arc<dyn PhysicalExtensionCodec> {
    Arc::new(Codec { inner: BallistaPhysicalExtensionCodec::default(), device: device.clone() })
}

fn config() -> SessionConfig {
    SessionConfig::new_with_ballista()
        .with_ballista_logical_extension_codec(logical(&Device::Cpu))
        .with_ballista_physical_extension_codec(physical(&Device::Cpu))
        .with_ballista_grpc_client_max_message_size(MESSAGE)
}

/// A context whose queries run on the cluster with a scheduler at `address` (`HOST:PORT`), with the functions registered.
///
/// # Errors
/// [`Error::Io`] where nothing answers there within 5 seconds; Ballista's own.
pub async fn connect(address: &str) -> Result<SessionContext> {
    let unreachable = |reason: String| external(Error::Io { what: format!("scheduler {address}"), reason });
    match tokio::time::timeout(CONNECT, tokio::net::TcpStream::connect(address)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(unreachable(format!("{error}, expected an orthant-scheduler at HOST:PORT"))),
        Err(_) => return Err(unreachable(format!("no answer within {} s", CONNECT.as_secs()))),
    }
    let state = SessionStateBuilder::new().with_default_features().with_config(config()).build();
    let ctx = SessionContext::remote_with_state(&format!("df://{address}"), state).await?;
    register(&ctx, Device::Cpu);
    Ok(ctx)
}

/// How [`serve_scheduler`] serves.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Where to listen.
    pub bind: SocketAddr,
    /// An executor that was not heard of for so long is lost, and its tasks go to others. Default 60 s.
    pub executor_timeout: Duration,
}

impl SchedulerOptions {
    /// At that address.
    pub fn new(bind: SocketAddr) -> Self {
        Self { bind, executor_timeout: Duration::from_secs(60) }
    }
}

/// Runs a scheduler that knows the functions, until it fails.
///
/// # Errors
/// Ballista's, as text: an address that is taken among them.
pub async fn serve_scheduler(options: &SchedulerOptions) -> Result<()> {
    let session = |config: SessionConfig| -> Result<SessionState> {
        let mut state = default_session_builder(config)?;
        for function in scalar::all(&Device::Cpu) {
            state.register_udf(Arc::new(function))?;
        }
        for function in super::aggregates(&Device::Cpu) {
            state.register_udaf(Arc::new(function))?;
        }
        Ok(state)
    };
    let seconds = options.executor_timeout.as_secs().max(1);
    let config = SchedulerConfig {
        bind_host: options.bind.ip().to_string(),
        bind_port: options.bind.port(),
        external_host: options.bind.ip().to_string(),
        override_logical_codec: Some(logical(&Device::Cpu)),
        override_physical_codec: Some(physical(&Device::Cpu)),
        override_session_builder: Some(Arc::new(session)),
        override_config_producer: Some(Arc::new(config)),
        grpc_server_max_decoding_message_size: MESSAGE as u32,
        grpc_server_max_encoding_message_size: MESSAGE as u32,
        grpc_client_max_message_size: MESSAGE as u32,
        executor_timeout_seconds: seconds,
        expire_dead_executor_interval_seconds: (seconds / 4).max(1),
        no_executors_grace_period_seconds: seconds,
        ..SchedulerConfig::default()
    };
    let cluster = BallistaCluster::new_from_config(&config).await.map_err(failed)?;
    start_server(cluster, options.bind, Arc::new(config)).await.map_err(failed)
}

/// How [`serve_executor`] serves.
#[derive(Clone, Debug)]
pub struct ExecutorOptions {
    /// Host and port of the scheduler.
    pub scheduler: (String, u16),
    /// Address that others reach this executor at.
    pub host: IpAddr,
    /// Where results are fetched.
    pub port: u16,
    /// Where tasks come in.
    pub grpc_port: u16,
    /// Where results between stages are kept; a temporary folder without.
    pub work_dir: Option<PathBuf>,
    /// Tasks at a time. Default: the processors there are.
    pub tasks: usize,
    /// How often it tells the scheduler that it is there. Default 10 s.
    pub heartbeat: Duration,
    /// What it computes on.
    pub device: Device,
}

impl ExecutorOptions {
    /// For that scheduler, on this machine's loopback, at ports 50051 and 50052, on the CPU.
    pub fn new(scheduler: (String, u16)) -> Self {
        Self {
            scheduler,
            host: IpAddr::from([127, 0, 0, 1]),
            port: 50051,
            grpc_port: 50052,
            work_dir: None,
            tasks: std::thread::available_parallelism().map_or(1, usize::from),
            heartbeat: Duration::from_secs(10),
            device: Device::Cpu,
        }
    }
}

/// Runs an executor that knows the functions, until it is stopped or fails.
///
/// # Errors
/// Ballista's, as text: a scheduler that does not answer within 20 seconds among them.
pub async fn serve_executor(options: &ExecutorOptions) -> Result<()> {
    let mut functions = BallistaFunctionRegistry::default();
    for function in scalar::all(&options.device) {
        functions.scalar_functions.insert(function.name().to_string(), Arc::new(function));
    }
    for function in super::aggregates(&options.device) {
        functions.aggregate_functions.insert(function.name().to_string(), Arc::new(function));
    }
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let config = ExecutorProcessConfig {
        bind_host: options.host.to_string(),
        external_host: Some(options.host.to_string()),
        port: options.port,
        grpc_port: options.grpc_port,
        scheduler_host: options.scheduler.0.clone(),
        scheduler_port: options.scheduler.1,
        scheduler_connect_timeout_seconds: 20,
        vcores: options.tasks.max(1),
        work_dir: options.work_dir.as_ref().map(text),
        grpc_max_decoding_message_size: MESSAGE as u32,
        grpc_max_encoding_message_size: MESSAGE as u32,
        executor_heartbeat_interval_seconds: options.heartbeat.as_secs().max(1),
        override_function_registry: Some(Arc::new(functions)),
        override_config_producer: Some(Arc::new(config)),
        override_logical_codec: Some(logical(&options.device)),
        override_physical_codec: Some(physical(&options.device)),
        ..ExecutorProcessConfig::default()
    };
    start_executor_process(Arc::new(config)).await.map_err(failed)
}

fn failed(error: ballista_core::error::BallistaError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
