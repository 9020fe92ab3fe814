//! A `.npy` file as a table: a column `row`, counted from 0, and the rows of the array.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::ArrayData;
use datafusion::arrow::array::{
    ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Int64Array, RecordBatch, RecordBatchOptions, make_array,
};
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::internal_err;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::memory::{LazyBatchGenerator, LazyMemoryExec};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use npyz::{DType, Endianness, Order, TypeChar};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::column::external;
use crate::Error;
use crate::npy_header::read_header;

/// What a file holds, and where its elements begin.
#[derive(Clone, Debug)]
struct Layout {
    path: PathBuf,
    offset: u64,
    rows: usize,
    /// Elements of a row; None for an array with one axis.
    width: Option<usize>,
    element: DataType,
    schema: SchemaRef,
}

impl Layout {
    fn open(path: &Path) -> Result<Self> {
        let format =
            |reason: String| external(Error::Format { what: ".npy", reason: format!("{}: {reason}", path.display()) });
        let file = File::open(path).map_err(|error| io(path, &error))?;
        let length = file.metadata().map_err(|error| io(path, &error))?.len();
        let mut reader = BufReader::new(file);
        let header = read_header(&mut reader)
            .map_err(|error| format(format!("not a .npy file, or truncated in its header ({error})")))?;
        let offset = reader.stream_position().map_err(|error| io(path, &error))?;
        let DType::Plain(kind) = header.dtype() else {
            return Err(format("it holds records, expected numbers".into()));
        };
        let element = match (kind.type_char(), kind.num_bytes()) {
            (TypeChar::Float, Some(2)) => DataType::Float16,
            (TypeChar::Float, Some(4)) => DataType::Float32,
            (TypeChar::Float, Some(8)) => DataType::Float64,
            (TypeChar::Int, Some(1)) => DataType::Int8,
            (TypeChar::Int, Some(2)) => DataType::Int16,
            (TypeChar::Int, Some(4)) => DataType::Int32,
            (TypeChar::Int, Some(8)) => DataType::Int64,
            (TypeChar::Uint, Some(1)) => DataType::UInt8,
            (TypeChar::Uint, Some(2)) => DataType::UInt16,
            (TypeChar::Uint, Some(4)) => DataType::UInt32,
            (TypeChar::Uint, Some(8)) => DataType::UInt64,
            _ => return Err(format(format!("its elements are of type {kind}, expected floats or integers"))),
        };
        let foreign = kind.endianness() != Endianness::Irrelevant && kind.endianness() != Endianness::of_machine();
        if foreign || header.order() == Order::Fortran && header.shape().len() > 1 {
            return Err(format(
                "it is in another byte order, or column by column: numpy.ascontiguousarray turns it".into(),
            ));
        }
        let shape: Vec<usize> = header.shape().iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect();
        let (rows, width) = match shape[..] {
            [rows] => (rows, None),
            [rows, width] if (1..=i32::MAX as usize).contains(&width) => (rows, Some(width)),
            _ => return Err(format(format!("it has the shape {shape:?}, expected one axis or two"))),
        };
        let size = kind.num_bytes().unwrap_or(1);
        let needed = rows.checked_mul(width.unwrap_or(1)).and_then(|elements| elements.checked_mul(size));
        let there = length.saturating_sub(offset);
        if needed.is_none_or(|needed| needed as u64 > there) {
            return Err(format(format!("truncated: its shape is {shape:?}, it has {there} bytes of elements")));
        }
        let data = match (width, &element) {
            (None, _) => Field::new("value", element.clone(), false),
            (Some(width), DataType::UInt8) => Field::new("code", DataType::FixedSizeBinary(width as i32), false),
            (Some(width), _) => {
                let item = Arc::new(Field::new("item", element.clone(), false));
                Field::new("embedding", DataType::FixedSizeList(item, width as i32), false)
            }
        };
        let schema = Arc::new(Schema::new(vec![Field::new("row", DataType::Int64, false), data]));
        Ok(Self { path: path.to_path_buf(), offset, rows, width, element, schema })
    }

    fn row_bytes(&self) -> usize {
        self.width.unwrap_or(1) * self.element.primitive_width().unwrap_or(1)
    }
}

fn io(path: &Path, error: &std::io::Error) -> datafusion::error::DataFusionError {
    external(Error::Io { what: path.display().to_string(), reason: error.to_string() })
}

/// A table over a `.npy` file.
#[derive(Debug)]
pub(crate) struct NpyTable(Layout);

impl NpyTable {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path = path.canonicalize().map_err(|error| io(path, &error))?;
        Layout::open(&path).map(Self)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }
}

#[async_trait]
impl TableProvider for NpyTable {
    fn schema(&self) -> SchemaRef {
        self.0.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let partitions = state.config().target_partitions().min(self.0.rows.div_ceil(1024)).max(1);
        NpyExec::of(self.0.clone(), projection.cloned(), partitions).map(|plan| Arc::new(plan) as _)
    }
}

/// What of a scan travels to an executor, which opens the file anew.
#[derive(Serialize, Deserialize)]
struct Saved {
    path: PathBuf,
    projection: Option<Vec<usize>>,
    partitions: usize,
}

/// A scan of a `.npy` file.
#[derive(Debug)]
pub(crate) struct NpyExec {
    layout: Layout,
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl NpyExec {
    fn of(layout: Layout, projection: Option<Vec<usize>>, partitions: usize) -> Result<Self> {
        let schema = match &projection {
            Some(columns) => Arc::new(layout.schema.project(columns)?),
            None => layout.schema.clone(),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self { layout, projection, properties: Arc::new(properties) })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let saved = Saved {
            path: self.layout.path.clone(),
            projection: self.projection.clone(),
            partitions: self.properties.partitioning.partition_count(),
        };
        serde_json::to_vec(&saved).unwrap_or_default()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let saved: Saved = serde_json::from_slice(bytes)
            .map_err(|error| external(Error::Format { what: ".npy scan", reason: error.to_string() }))?;
        Self::of(Layout::open(&saved.path)?, saved.projection, saved.partitions.max(1))
    }
}

impl DisplayAs for NpyExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "NpyExec: {}, {} rows", self.layout.path.display(), self.layout.rows)
    }
}

impl ExecutionPlan for NpyExec {
    fn name(&self) -> &str {
        "NpyExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    #[allow(deprecated)]
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("NpyExec has no children") }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (rows, partitions) = (self.layout.rows, self.properties.partitioning.partition_count());
        let range = rows * partition / partitions..rows * (partition + 1) / partitions;
        let scan = Scan {
            layout: self.layout.clone(),
            projection: self.projection.clone(),
            schema: self.properties.eq_properties.schema().clone(),
            batch: context.session_config().batch_size(),
            next: range.start,
            range,
            file: None,
        };
        let scan: Arc<RwLock<dyn LazyBatchGenerator>> = Arc::new(RwLock::new(scan));
        LazyMemoryExec::try_new(self.properties.eq_properties.schema().clone(), vec![scan])?.execute(0, context)
    }
}

/// The rows of one partition, a batch at a time.
#[derive(Debug)]
struct Scan {
    layout: Layout,
    projection: Option<Vec<usize>>,
    schema: SchemaRef,
    batch: usize,
    range: std::ops::Range<usize>,
    next: usize,
    file: Option<File>,
}

impl fmt::Display for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.layout.path.display())
    }
}

impl Scan {
    /// The rows from `first` on.
    fn read(&mut self, first: usize, count: usize) -> Result<ArrayRef> {
        let (layout, size) = (&self.layout, self.layout.row_bytes());
        let mut bytes = vec![0u8; count * size];
        let read = |file: &mut File, bytes: &mut [u8]| {
            file.seek(SeekFrom::Start(layout.offset + (first * size) as u64))?;
            file.read_exact(bytes)
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(&layout.path).map_err(|error| io(&layout.path, &error))?),
        };
        read(file, &mut bytes).map_err(|error| io(&layout.path, &error))?;
        let buffer = Buffer::from(bytes);
        Ok(match (layout.width, &layout.element) {
            (Some(width), DataType::UInt8) => Arc::new(FixedSizeBinaryArray::try_new(width as i32, buffer, None)?),
            (width, element) => {
                let data = ArrayData::builder(element.clone()).len(count * width.unwrap_or(1));
                // the elements may lie where their type must not
                let elements = make_array(data.add_buffer(buffer).align_buffers(true).build()?);
                match width {
                    None => elements,
                    Some(width) => {
                        let item = Arc::new(Field::new("item", element.clone(), false));
                        Arc::new(FixedSizeListArray::try_new(item, width as i32, elements, None)?)
                    }
                }
            }
        })
    }
}

impl LazyBatchGenerator for Scan {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn generate_next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let first = self.next;
        let count = self.batch.max(1).min(self.range.end - first);
        if count == 0 {
            return Ok(None);
        }
        self.next += count;
        let columns = self.projection.clone().unwrap_or_else(|| vec![0, 1]);
        let column = |column: usize| -> Result<ArrayRef> {
            match column {
                0 => Ok(Arc::new(Int64Array::from_iter_values(first as i64..(first + count) as i64))),
                _ => self.read(first, count),
            }
        };
        let columns = columns.into_iter().map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(Some(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?))
    }

    fn reset_state(&self) -> Arc<RwLock<dyn LazyBatchGenerator>> {
        Arc::new(RwLock::new(Scan {
            layout: self.layout.clone(),
            projection: self.projection.clone(),
            schema: self.schema.clone(),
            range: self.range.clone(),
            next: self.range.start,
            file: None,
            ..*self
        }))
    }
}
