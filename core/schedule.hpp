#pragma once

// The schedule of a training step: the one thing that frameworks' rules produce and that everything else reads.
//
// A schedule is a list of operations on streams. Each operation names the buffers it makes live and those it frees, in
// order, and what it sends over which group. Buffers that are alike belong to one BufferClass, which knows its size,
// the formula of it and where the rule comes from; payloads likewise. So sizes can change (more ranks, another
// micro-batch) while the structure stays, which is what makes a closed form possible, and every byte can be asked
// "why".
//
// All of it is the view of ONE rank: the one that needs the most memory.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/actions.hpp"
#include "core/dtype.hpp"

namespace shardwright {

enum class Place : std::uint8_t { Gpu, HostPinned, HostPageable, Nvme };
template <> struct EnumNames<Place> {
    static constexpr std::array<std::pair<Place, std::string_view>, 4> table{{{Place::Gpu, "gpu"},
                                                                              {Place::HostPinned, "host-pinned"},
                                                                              {Place::HostPageable, "host-pageable"},
                                                                              {Place::Nvme, "nvme"}}};
};

enum class Category : std::uint8_t {
    Parameters,           // what the rank keeps of the parameters between steps, in the training dtype
    MasterParameters,     // fp32 copies that the optimizer steps
    Gradients,            // gradients, whole or sharded, from their making to the optimizer step
    OptimizerStates,      // moments
    GatheredParameters,   // unsharded copies made for computing
    CommunicationBuffers, // buckets, flattening copies, quantised payloads
    Activations,          // kept for backward
    Logits,               // logits, their log-softmax and gradients
    Temporaries,          // everything else that lives within an operation or two
};
constexpr std::size_t kCategoryCount = 9;
template <> struct EnumNames<Category> {
    static constexpr std::array<std::pair<Category, std::string_view>, kCategoryCount> table{
        {{Category::Parameters, "parameters"},
         {Category::MasterParameters, "master_parameters"},
         {Category::Gradients, "gradients"},
         {Category::OptimizerStates, "optimizer_states"},
         {Category::GatheredParameters, "gathered_parameters"},
         {Category::CommunicationBuffers, "communication_buffers"},
         {Category::Activations, "activations"},
         {Category::Logits, "logits"},
         {Category::Temporaries, "temporaries"}}};
};

/// Operations of one stream run one after the other. Each stream has a memory pool of its own in the caching allocator.
enum class Stream : std::uint8_t {
    Compute,
    AllGather,
    Reduce,
    Replicate,
    HostToDevice,
    DeviceToHost,
    Host,
    Nvme,
    Pipeline, // activations and their gradients between pipeline stages
    Context   // keys and values around the ring of a context-parallel group
};
constexpr std::size_t kStreamCount = 10;
template <> struct EnumNames<Stream> {
    static constexpr std::array<std::pair<Stream, std::string_view>, kStreamCount> table{
        {{Stream::Compute, "compute"},
         {Stream::AllGather, "all-gather"},
         {Stream::Reduce, "reduce"},
         {Stream::Replicate, "replicate"},
         {Stream::HostToDevice, "host-to-device"},
         {Stream::DeviceToHost, "device-to-host"},
         {Stream::Host, "host"},
         {Stream::Nvme, "nvme"},
         {Stream::Pipeline, "pipeline"},
         {Stream::Context, "context"}}};
};

enum class Phase : std::uint8_t { Init, Forward, Loss, Backward, Optimizer, AfterStep };
template <> struct EnumNames<Phase> {
    static constexpr std::array<std::pair<Phase, std::string_view>, 6> table{{{Phase::Init, "initialisation"},
                                                                              {Phase::Forward, "forward"},
                                                                              {Phase::Loss, "loss"},
                                                                              {Phase::Backward, "backward"},
                                                                              {Phase::Optimizer, "optimizer step"},
                                                                              {Phase::AfterStep, "after the step"}}};
};

enum class OpKind : std::uint8_t {
    Allocate, // buffers come to be, nothing runs
    Release,  // buffers go, nothing runs
    AllGather,
    ReduceScatter,
    AllReduce,
    Reduce,
    Broadcast,
    AllToAll,
    Send,    // to the next or the previous pipeline stage, or around a ring
    Receive, // the other end of it
    Forward,
    Recompute,
    Backward,
    LossForward,
    LossBackward,
    Copy,         // within the GPU: flatten, cast, split
    CopyToDevice, // host to GPU
    CopyToHost,   // GPU to host
    NvmeRead,
    NvmeWrite,
    Quantize,
    Dequantize,
    OptimizerStep,     // on the GPU
    HostOptimizerStep, // on the CPU
};
constexpr std::size_t kOpKindCount = 24;
template <> struct EnumNames<OpKind> {
    static constexpr std::array<std::pair<OpKind, std::string_view>, kOpKindCount> table{
        {{OpKind::Allocate, "allocate"},
         {OpKind::Release, "release"},
         {OpKind::AllGather, "all-gather"},
         {OpKind::ReduceScatter, "reduce-scatter"},
         {OpKind::AllReduce, "all-reduce"},
         {OpKind::Reduce, "reduce"},
         {OpKind::Broadcast, "broadcast"},
         {OpKind::AllToAll, "all-to-all"},
         {OpKind::Send, "send"},
         {OpKind::Receive, "receive"},
         {OpKind::Forward, "forward"},
         {OpKind::Recompute, "recompute"},
         {OpKind::Backward, "backward"},
         {OpKind::LossForward, "loss-forward"},
         {OpKind::LossBackward, "loss-backward"},
         {OpKind::Copy, "copy"},
         {OpKind::CopyToDevice, "copy-to-device"},
         {OpKind::CopyToHost, "copy-to-host"},
         {OpKind::NvmeRead, "nvme-read"},
         {OpKind::NvmeWrite, "nvme-write"},
         {OpKind::Quantize, "quantize"},
         {OpKind::Dequantize, "dequantize"},
         {OpKind::OptimizerStep, "optimizer-step"},
         {OpKind::HostOptimizerStep, "host-optimizer-step"}}};
};

/// True for operations that go over a link between GPUs.
constexpr bool isCollective(OpKind kind)
{
    return kind >= OpKind::AllGather && kind <= OpKind::Receive;
}

/// When a buffer class exists. Persistent: from initialisation to the end. FromFirstStep: made at the first optimizer
/// step and kept (lazy optimizer states). Transient: comes and goes within a step.
enum class Lifetime : std::uint8_t { Persistent, FromFirstStep, Transient };

/// The part of a buffer class that a framework's rule fixes. The texts must be literals: they are not copied.
struct BufferSpec {
    std::string_view name;    // "unsharded parameters of one unit"
    std::string_view formula; // "2 B x P_b"; symbols as in planner/README.md
    std::string_view
        source; // "D2" style reference into planner/README.md's list of sources, or a file of the framework
    Category category = Category::Temporaries;
    Place place = Place::Gpu;
    Stream pool = Stream::Compute;
    Lifetime lifetime = Lifetime::Transient;
};

using BufferClassId = std::int32_t;
using PayloadId = std::int32_t;
using OpId = std::int32_t;

struct BufferClass {
    const BufferSpec* spec = nullptr;
    Bytes bytes;        // of one buffer of the class
    int layerType = -1; // index into Model::layerTypes, or -1
};

/// What one operation moves. For collectives `bytes` is the WHOLE tensor as nccl-tests counts it: gathered size of an
/// all-gather, input size of a reduce-scatter, the tensor of an all-reduce. For copies over PCIe and NVMe it is what
/// goes over; for operations within one memory (Copy, Quantize, Dequantize and both optimizer steps) what is read plus
/// what is written.
struct Payload {
    std::string_view name;
    std::string_view formula;
    std::string_view source;
    Bytes bytes;
    DType native = DType::Bf16; // dtype of the uncompressed tensor: fixes what one element counts in units of Ψ
    bool countsInPsi = true;    // Ψ counts parameters and gradients; activations between model-parallel ranks do not
};

/// A communicator, as one rank sees it. Its ranks are `stride` apart: 1 for neighbours, the shard group's size for
/// replicas.
struct Group {
    std::string_view name; // "world", "shard", "replicate", "secondary"
    std::int64_t ranks = 1;
    std::int64_t nodes = 1; // nodes it spans
    std::int64_t stride = 1;

    /// The lowest rank of the group that `rank` is in.
    std::int64_t firstRank(std::int64_t rank) const
    {
        return rank / (ranks * stride) * (ranks * stride) + rank % stride;
    }
    /// The place of `rank` in its group.
    std::int64_t placeOf(std::int64_t rank) const { return rank / stride % ranks; }
};

/// Everything with a size. A framework defines its classes in one fixed order, whatever the numbers.
struct SizeTable {
    std::vector<BufferClass> buffers;
    std::vector<Payload> payloads;
    std::vector<Group> groups;

    void clear();
    BufferClassId addBuffer(const BufferSpec& spec, Bytes bytes, int layerType = -1);
    PayloadId addPayload(const Payload& payload);
    GroupId addGroup(const Group& group);
};

struct Op {
    OpKind kind = OpKind::Allocate;
    Stream stream = Stream::Compute;
    Phase phase = Phase::Init;
    std::int16_t stage =
        -1; // leaf module or stage within the layer, -1 = whole layer; meaning belongs to the activation profile
    // [firstPart, endPart): the stages of the layer's pass (LayerProgram) that Forward, Recompute and Backward run; the
    // ranks that a recorded Reduce goes to, one payload each, -1: all of the group. Both -1 elsewhere.
    std::int16_t firstPart = -1;
    std::int16_t endPart = -1;
    std::int32_t layer = -1; // position in Model::layers, or -1
    PayloadId payload = -1;
    GroupId group = -1;
    std::int32_t payloadCount = 1; // how many such payloads, sent one after the other
    std::uint32_t firstEvent = 0;  // into Schedule::events
    std::uint32_t eventCount = 0;
    std::uint32_t firstWait = 0; // into Schedule::waits
    std::uint32_t waitCount = 0;
    std::uint32_t firstAction = 0; // into Schedule::actions; nothing unless the schedule is recorded for execution
    std::uint32_t actionCount = 0;
};

/// What happens to a buffer. FreeDeferred: the program lets go of it (it no longer counts as allocated), but another
/// stream still uses it (record_stream), so the allocator cannot hand it out again before Reclaim.
enum class BufferChange : std::uint8_t { Allocate, Free, FreeDeferred, Reclaim };

/// Events of an op happen in order, while the host issues it.
struct BufferEvent {
    BufferId buffer = -1;
    BufferChange change = BufferChange::Allocate;
};

/// Before an op starts, `op` (issued earlier, on another stream) has ended. blocksHost: the host itself waits for it
/// before it issues the waiting op, and so everything after it (cudaStreamSynchronize, event.synchronize()).
struct Wait {
    OpId op = -1;
    bool blocksHost = false;
};

/// A stretch of operations that happens `repeat` times in a row: the micro-steps in the middle are alike.
/// The last repetition leaves the buffers as the first found them, up to those that the next segment knows of.
/// repeat = 0, in schedules for execution only: no part of the step that is planned, but what stands in for the segment
/// behind it while the optimizer warms up (1-bit Adam). It begins and ends with that one's buffers.
struct Segment {
    std::string_view
        name; // "initialisation", "first micro-step", "micro-steps between", "last micro-step", "optimizer step"
    std::uint32_t firstOp = 0;
    std::uint32_t endOp = 0;
    std::int64_t repeat = 1;
};

struct Schedule {
    SizeTable sizes;
    std::vector<BufferClassId> buffers; // BufferId -> class
    std::vector<Op> ops;
    std::vector<BufferEvent> events;
    std::vector<Wait> waits;
    std::vector<Segment> segments;
    // What execution needs besides; empty in a schedule that is only read for its sizes and times.
    std::vector<Content> contents;
    std::vector<ContentId> contentOf; // BufferId -> content, -1 = activations and other tensors of the layers
    std::vector<Action> actions;
    std::vector<BufferId> operands;

    bool executable() const { return !actions.empty(); }
};

/// Whether a builder also writes down contents and actions.
enum class Recording : std::uint8_t { SizesOnly, ForExecution };

/// Writes a schedule operation by operation. Not thread-safe; one builder per schedule.
///
///   builder.beginSegment("last micro-step");
///   builder.op(OpKind::AllGather, Stream::AllGather, Phase::Forward, layer);
///   const BufferId whole = builder.allocate(unsharded);
///   builder.send(payload, shardGroup);
///   builder.op(OpKind::Forward, Stream::Compute, Phase::Forward, layer);
///   builder.free(whole);
class ScheduleBuilder {
public:
    /// Takes the sizes that the rules have defined.
    explicit ScheduleBuilder(SizeTable sizes, Recording recording = Recording::SizesOnly)
        : m_records(recording == Recording::ForExecution)
    {
        m_schedule.sizes = std::move(sizes);
    }

    void beginSegment(std::string_view name, std::int64_t repeat = 1);
    /// Starts the next operation; what follows (allocate, free, send, wait) belongs to it.
    OpId op(OpKind kind, Stream stream, Phase phase, std::int32_t layer = -1, std::int16_t stage = -1);
    BufferId allocate(BufferClassId bufferClass, ContentId content = -1);
    void free(BufferId buffer);
    void freeDeferred(BufferId buffer);
    void reclaim(BufferId buffer);
    void send(PayloadId payload, GroupId group, std::int32_t count = 1);
    void move(PayloadId payload, std::int32_t count = 1) { send(payload, -1, count); } // copies and NVMe: no group
    /// The current op's stream waits for `op`; nothing for op < 0, so that "the last gather, if any" needs no branch.
    void wait(OpId op);
    /// The host waits for `op` before it issues the current op.
    void blockHost(OpId op);
    /// The current op runs stage `part` of its layer's pass too; a Reduce: goes to that rank of its group too.
    void cover(std::size_t part);

    /// Whether contents and actions are wanted. Where they are not, content() and act() do nothing, cheaply; work that
    /// only they need is to be left out.
    bool records() const { return m_records; }
    /// The id of that content, registered once; -1 where nothing is recorded.
    ContentId content(const Content& content);
    /// What `buffer` holds, where allocate() did not say it or where it holds something else from here on.
    void hold(BufferId buffer, ContentId content);
    /// The current op does this, after its events so far and before those to come. Operands of -1 are left out.
    void act(const Action& action, const std::vector<BufferId>& reads, const std::vector<BufferId>& writes);
    void act(Verb verb, const std::vector<BufferId>& reads, const std::vector<BufferId>& writes)
    {
        Action action;
        action.verb = verb;
        act(action, reads, writes);
    }

    OpId lastOp() const { return static_cast<OpId>(m_schedule.ops.size()) - 1; }
    const SizeTable& sizes() const { return m_schedule.sizes; }
    Schedule finish();

private:
    void change(BufferId buffer, BufferChange change);
    void addWait(OpId op, bool blocksHost);

    Schedule m_schedule;
    bool m_records = false;
};

} // namespace shardwright
