#pragma once

// ZeRO stage 3: runtime/zero/stage3.py ("stage3.py"), runtime/zero/partition_parameters.py ("partition_parameters.py"),
// with offload, ZeRO++ and MiCS.

#include <algorithm>

#include "core/deepspeed_options.hpp"
#include "planner/frameworks/deepspeed/bucket_plan.hpp"
#include "planner/frameworks/deepspeed/deepspeed_rules.hpp"
#include "planner/frameworks/deepspeed/gather_plan.hpp"

namespace shardwright {

class Zero3Rules final : public DeepSpeedRules {
public:
    explicit Zero3Rules(const PlanInput& input);

    void resize(const PlanInput& input) override;
    std::string structureKey() const override;
    ModelStates modelStates() const override;
    int communicators() const override;
    std::vector<Note> assumptions() const override;
    Schedule emit() const override;

    const GatherPlan& gathers() const { return m_gathers; }

protected:
    std::int64_t steppedElements() const override { return m_shard; }

private:
    friend class Zero3Emission;

    // partition_parameters.py CUDAQuantizer.target_group_size: elements per fp32 scale
    static constexpr std::int64_t kQuantizedGroup = 8000;

    /// What goes between the ranks of one group in a gather call.
    struct GatherClasses {
        BufferClassId flat = -1;      // what the collective fills (int8 under qwZ)
        BufferClassId joined = -1;    // shards of a coalesced call under qwZ, one after another for the quantiser
        BufferClassId quantized = -1; // this rank's int8 input under qwZ
        BufferClassId upload = -1;    // this rank's part on its way from the host
        PayloadId uploadCopy = -1;
        PayloadId quantise = -1; // this rank's part
        PayloadId gather = -1;
    };
    /// A gather call of one kind.
    struct CallClasses {
        bool coalesced = false;
        GatherClasses primary;
        GatherClasses secondary;    // within the hpZ group, of its larger parts
        BufferClassId widened = -1; // dequantised flat buffer of a coalesced call under qwZ
        PayloadId nvmeRead = -1;
        PayloadId copyOut = -1; // dequantised under qwZ

        const GatherClasses& of(const GatherCall& call) const { return call.secondary ? secondary : primary; }
    };
    /// A reduction of one kind.
    struct FlushClasses {
        BufferClassId input = -1;
        BufferClassId cast = -1;
        BufferClassId offload = -1; // shard on its way to the host, 16-bit and fp32
        PayloadId scatter = -1;     // reduce-scatter or all-reduce
        PayloadId replicate = -1;   // MiCS
        PayloadId narrowCopy = -1;  // 16-bit shard to the host, or back
        PayloadId wideCopy = -1;    // fp32 shard to the host
        // Within the GPU: before the reduction, and the shard kept or added up after it.
        PayloadId prepare = -1, keep = -1, addUp = -1;
        bool asItIs = false; // reduced where it lies
    };
    /// The reduction of one tensor under qgZ (zero3_two_hops.cpp): quantised, or scattered by itself where it cannot
    /// be.
    struct TwoHopClasses {
        std::int64_t numel = 0;
        std::int64_t longestSide = 0;
        bool compressed = false;
        std::int64_t block = 0;     // elements that share a scale
        BufferClassId inside = -1;  // int4 payload of the first hop, in or out
        BufferClassId between = -1; // of the second hop
        BufferClassId dequantised = -1;
        BufferClassId output = -1; // this rank's part
        BufferClassId padded = -1; // of a tensor that is scattered and does not divide evenly
        PayloadId insidePayload = -1, betweenPayload = -1, scatter = -1;
        PayloadId quantise = -1, requantise = -1, dequantise = -1, divide = -1;
    };
    /// The fp32 gradients of a flush at the boundary.
    struct WideMoves {
        PayloadId down = -1; // to the host
        PayloadId keep = -1; // of sub-groups that are stepped on the GPU
    };
    struct GradientClasses : GradientClassIds {
        PayloadId toBucket = -1;
        PayloadId tiedSum = -1;
    };
    /// The part of the shard that is stepped at once.
    struct SubGroup {
        std::int64_t elements = 0;
        std::size_t firstTensor = 0; // of FlatOrder
        std::size_t endTensor = 0;
        bool onGpu = true;
        bool onNvme = false; // its states
        std::int64_t parametersOnNvme = 0;
        BufferClassId flat = -1;
        BufferClassId wide = -1;
        BufferClassId foreach = -1;
        std::int64_t persistent =
            0; // of its elements, or of those that go up with it: kept on the GPU under offload_param
        PayloadId persistentUp = -1;
        PayloadId parametersUp = -1;
        PayloadId parametersDown = -1;  // to where they are kept in host memory
        PayloadId parametersLand = -1;  // on their way to NVMe
        PayloadId parametersWrite = -1; // to NVMe
        PayloadId stateRead = -1;
        PayloadId stateWrite = -1;
        PayloadId prepare = -1; // gradient flattened, cast and unscaled
        PayloadId step = -1;
    };

    /// Where a parameter's shard is kept between its uses: on the GPU, in the flat buffer of host memory, in host
    /// memory by itself, or on NVMe.
    enum class Home : std::uint8_t { Gpu, Flat, Host, Nvme };

    /// Whether all sizes but those of activations stay as they are.
    bool differsInTokensAlone(const PlanInput& input) const;
    void takeTokens(const PlanInput& input);
    std::string shardsKey() const;
    void defineGroups(const PlanInput& input);
    void findHomes();
    bool isPersistent(const FlatTensor& tensor) const;
    Bytes smallestSwap() const;
    void defineNvmeReads();
    void splitSubGroups();
    void defineStates();
    void defineHost();
    void defineNvme();
    void defineCalls();
    void definePieces();
    BufferClassId defineSecondary(const GatherUnitType& type, Bytes exact);
    void defineGradients();
    void defineFlushes();
    void defineWideMoves();
    void defineFlushCopies(FlushClasses& classes, std::int64_t padded, std::int64_t shard);
    void findTwoHopKinds();
    void defineTwoHops();
    std::vector<Note> twoHopNotes() const;
    void defineStep();
    void stepAtOnce();
    void definePersistentUp();

    std::int64_t shardOf(const FlatTensor& tensor) const { return ceilDivide(tensor.numel, m_shardRanks); }
    std::int64_t paddedElements(const TensorRuns& runs, std::int64_t ranks, bool frozen) const;
    Bytes paddedBytes(const TensorRuns& runs, std::int64_t ranks) const;
    Bytes exactBytes(const TensorRuns& runs) const;
    /// Of all `parts` parts of the tensors, which are padded for all ranks.
    Bytes quantizedBytes(const TensorRuns& runs, std::int64_t parts) const;
    GatherClasses gatherClasses(const TensorRuns& runs, std::int64_t parts, bool coalesced);
    /// Elements of the largest sub-group that has its states on NVMe.
    std::int64_t largestSwap() const
    {
        std::int64_t largest = 0;
        for (const SubGroup& group : m_subGroups)
            largest = group.onNvme ? std::max(largest, group.elements) : largest;
        return largest;
    }
    std::int64_t largestSubGroup() const
    {
        std::int64_t largest = 0;
        for (const SubGroup& group : m_subGroups)
            largest = std::max(largest, group.elements);
        return largest;
    }
    /// Sub-groups whose states are in swap buffers at once: pipeline_read brings the next one's while one is stepped.
    std::int64_t swapSets() const { return m_options.pipelineRead ? 2 : 1; }
    /// Elements of the largest gradient that is copied into the bucket.
    std::int64_t bucketLimit() const { return m_options.contiguousGradients ? m_options.reduceBucketSize : 0; }
    bool gathersNothing() const { return m_shardRanks == 1 && m_options.offloadParam == OffloadDevice::None; }
    /// One rank alone gathers nothing, so it quantises nothing either (partition_parameters.py _no_gather_coalesced).
    bool quantizesWeights() const { return m_options.quantizedWeights && !gathersNothing(); }
    bool optimizerOn(OffloadDevice device) const { return m_options.offloadOptimizer == device; }
    bool paramOn(OffloadDevice device) const { return m_options.offloadParam == device; }
    std::int64_t offloadedElements() const;
    /// Elements of the sub-groups that are stepped on the host and have their states there.
    std::int64_t onHostElements() const;
    /// offload_optimizer.ratio < 1: sub-groups that are stepped on the GPU while others are not.
    bool stepsInTwoPlaces() const { return offloadsOptimizer() && m_subGroups.front().onGpu; }
    /// Whether a tensor is in a sub-group that is stepped on the GPU.
    bool steppedOnGpu(const FlatTensor& tensor) const;
    std::int64_t onGpuElements() const { return m_shard - offloadedElements(); }
    Bytes nvmeParameterBytes() const;

    std::vector<Visit> m_visits;
    FlatOrder m_order;
    BucketPlan m_buckets;
    GatherPlan m_gathers;

    std::int64_t m_sizedNodes = 0; // that sizes are those of; 0: none yet
    std::int64_t m_sizedGpusPerNode = 0;
    SizeTable m_tokenSizes;  // of activations, for the candidate at hand
    std::string m_shardsKey; // the part of structureKey() that goes with those sizes

    std::int64_t m_shardRanks = 1;  // ranks that share the states
    std::int64_t m_shard = 0;       // trainable elements of this rank, padding included
    std::int64_t m_frozenShard = 0; // frozen ones
    std::int64_t m_largestShard = 0;
    std::int64_t m_persistentShard = 0; // of m_shard and m_frozenShard
    std::vector<Home> m_homes;          // of parameters, in the order of m_order
    std::int64_t m_nvmeShard = 0;       // of m_shard
    std::int64_t m_frozenOnNvme = 0;    // of m_frozenShard
    Bytes m_ownHostBytes;               // of shards that are in host memory by themselves
    std::vector<SubGroup> m_subGroups;

    GroupId m_shardGroup = -1, m_replicaGroup = -1, m_secondaryGroup = -1, m_insideGroup = -1, m_betweenGroup = -1;
    BufferClassId m_wholeModule = -1, m_largestTensor = -1;
    BufferClassId m_shards = -1, m_frozenShards = -1, m_master = -1, m_moments = -1, m_gradientShards = -1,
                  m_bucket = -1, m_persistent = -1;
    BufferClassId m_hostShards = -1, m_hostOwn = -1, m_landing = -1, m_hostMaster = -1, m_hostNarrowGradients = -1,
                  m_hostWideGradients = -1, m_hostMoments = -1, m_swapBuffers = -1, m_paramBuffers = -1;
    BufferClassId m_wideGradients = -1;
    BufferClassId m_swapMaster = -1, m_swapGradient = -1, m_swapMoments = -1;
    BufferClassId m_nvmeMaster = -1, m_nvmeGradients = -1, m_nvmeMoments = -1, m_nvmeParameters = -1;
    BufferClassId m_overflow = -1, m_norm = -1;
    std::vector<CallClasses> m_calls;          // by call kind
    std::vector<BufferClassId> m_pieces;       // by piece kind
    std::vector<BufferClassId> m_narrowPieces; // fp16 result of the dequantiser before its conversion to bf16
    std::vector<BufferClassId> m_secondaries;  // by unit type
    std::vector<std::vector<GradientClasses>> m_gradients;
    std::vector<FlushClasses> m_flushes;      // by flush kind
    std::vector<WideMoves> m_wideMoves;       // by flush, where sub-groups are stepped in two places
    std::vector<TwoHopClasses> m_twoHops;     // by kind of tensor: tensors of the same sizes share one; under qgZ
    std::vector<std::size_t> m_twoHopKinds;   // by index into m_buckets.tensors
    std::vector<PayloadId> m_secondaryCopies; // by unit type
    // By gather call, of the first micro-step and of later ones: what is read is known where tensors have names.
    std::vector<PayloadId> m_firstReads, m_laterReads;
    PayloadId m_persistentGather = -1, m_check = -1;
};

} // namespace shardwright
