// FSDP1: torch.distributed.fsdp.FullyShardedDataParallel. Sources: torch/distributed/fsdp/_runtime_utils.py
// ("runtime"), _flat_param.py ("flat_param"), api.py; Accelerate accelerator.py for the upcast of trainable parameters.

#include <algorithm>
#include <deque>

#include <fmt/format.h>

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/fsdp/units.hpp"
#include "planner/frameworks/optimizer_rules.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr std::size_t kMaximumAllGathersInFlight = 2; // runtime: _max_num_inflight_all_gathers of _FreeEventQueue
constexpr std::int64_t kAlignment = 16;               // bytes; flat_param: _get_aligned_numel, with use_orig_params

constexpr BufferSpec kShard{"sharded flat parameter of a unit",
                            "d x E / N",
                            "flat_param _init_shard",
                            C::Parameters,
                            Place::Gpu,
                            S::Compute,
                            L::Persistent};
constexpr BufferSpec kMoments{"optimizer states of a unit's shard",
                              "moments x d x E / N",
                              "torch.optim",
                              C::OptimizerStates,
                              Place::Gpu,
                              S::Compute,
                              L::FromFirstStep};
constexpr BufferSpec kUpload{"shard copied from the host", "d x E / N", "flat_param pre_unshard, CPUOffload",
                             C::CommunicationBuffers,      Place::Gpu,  S::AllGather};
constexpr BufferSpec kLowPrecisionShard{
    "shard in the compute dtype", "c x E / N", "flat_param _use_low_precision_shard",
    C::CommunicationBuffers,      Place::Gpu,  S::AllGather};
constexpr BufferSpec kUnsharded{"unsharded flat parameter of a unit",
                                "c x E",
                                "flat_param _alloc_padded_unsharded_flat_param",
                                C::GatheredParameters,
                                Place::Gpu,
                                S::AllGather};
constexpr BufferSpec kModuleGradient{"unsharded gradient of a module", "c x numel", "torch autograd", C::Gradients};
constexpr BufferSpec kFlatGradient{"flat gradient of a unit", "c x E",
                                   "torch split_with_sizes_backward concatenates (PyTorch 117323)", C::Gradients};
constexpr BufferSpec kReduceCast{"flat gradient in the reduce dtype",
                                 "r x E",
                                 "runtime _post_backward_hook",
                                 C::CommunicationBuffers,
                                 Place::Gpu,
                                 S::Reduce};
constexpr BufferSpec kReducePadded{"flat gradient padded to N", "r x E",    "runtime _get_reduce_scatter_tensors",
                                   C::CommunicationBuffers,     Place::Gpu, S::Reduce};
constexpr BufferSpec kReduceOutput{"reduce-scatter output of a unit", "r x E / N", "runtime _reduce_grad",
                                   C::CommunicationBuffers,           Place::Gpu,  S::Reduce};
constexpr BufferSpec kGradientShard{
    "sharded gradient of a unit", "d x E / N", "runtime _accumulate_sharded_grad", C::Gradients, Place::Gpu, S::Reduce};
constexpr BufferSpec kForeach{"temporaries of the foreach optimizer", "d x shards",
                              "torch/optim/adamw.py _multi_tensor_adamw", C::Temporaries};
constexpr BufferSpec kHostShard{"sharded flat parameter in pinned host memory",
                                "d x E / N, rounded up to a power of two",
                                "flat_param _local_shard.pin_memory(); CachingHostAllocatorImpl PowerOf2Ceil",
                                C::Parameters,
                                Place::HostPinned,
                                S::Host,
                                L::Persistent};
constexpr BufferSpec kHostGradient{"sharded gradient in pinned host memory",
                                   "d x E / N, rounded up to a power of two",
                                   "flat_param _cpu_grad; CachingHostAllocatorImpl PowerOf2Ceil",
                                   C::Gradients,
                                   Place::HostPinned,
                                   S::Host,
                                   L::Persistent};
constexpr BufferSpec kHostMoments{"optimizer states in host memory",
                                  "moments x d x E / N",
                                  "torch.optim on CPU",
                                  C::OptimizerStates,
                                  Place::HostPageable,
                                  S::Host,
                                  L::FromFirstStep};
constexpr BufferSpec kInitModule{"unsharded unit while it is wrapped", "l x E", "FSDP moves the unit to device_id",
                                 C::Temporaries};
constexpr BufferSpec kInitFlat{"unsharded flat parameter while it is built", "l x E", "flat_param flatten_tensors",
                               C::Temporaries};

bool hybrid(const Fsdp1Options& options)
{
    return options.sharding == ShardingStrategy::HybridShard || options.sharding == ShardingStrategy::HybridShardZero2;
}

bool reshardsAfterForward(const Fsdp1Options& options)
{
    return options.sharding == ShardingStrategy::FullShard || options.sharding == ShardingStrategy::HybridShard;
}

class Fsdp1Rules final : public FrameworkRules {
public:
    explicit Fsdp1Rules(const PlanInput& input)
        : m_model(input.model), m_options(std::get<Fsdp1Options>(input.strategy.options)),
          m_compute(m_options.paramDtype.value_or(computeDtype(input.training.precision))),
          m_storage(input.training.precision.mixed && m_options.upcastTrainable ? DType::Fp32
                                                                                : input.training.precision.load),
          m_reduce(m_options.reduceDtype.value_or(m_compute)), m_activations(input.model, input.training, m_compute),
          m_units(unitsOf(input.model, {m_options.wrap, m_options.minNumParams, false}))
    {
        resize(input);
    }

    void resize(const PlanInput& input) override
    {
        m_training = input.training;
        m_options = std::get<Fsdp1Options>(input.strategy.options);
        m_cluster = &input.cluster;
        m_shardRanks = shardRanks(input);
        m_replicas = replicaGroup(input.cluster, m_shardRanks);
        m_sizes.clear();
        m_activations.defineSizes(m_sizes, m_training);
        m_shardGroup = m_sizes.addGroup(
            {m_replicas.ranks > 1 ? "shard" : "world", m_shardRanks, nodesOfConsecutive(input.cluster, m_shardRanks)});
        m_replicaGroup = m_sizes.addGroup(m_replicas);
        m_unitSizes.assign(m_units.types.size(), {});
        for (std::size_t type = 0; type < m_units.types.size(); ++type)
            defineUnit(m_units.types[type], m_unitSizes[type]);
        m_gradientOfModule.clear();
        for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
            std::vector<BufferClassId> classes;
            for (const LeafModule& module : m_activations.modules(static_cast<int>(type)))
                classes.push_back(module.trainable == 0
                                      ? -1
                                      : m_sizes.addBuffer(kModuleGradient, bytesOf(module.trainable, m_compute),
                                                          static_cast<int>(type)));
            m_gradientOfModule.push_back(std::move(classes));
        }
        const bool temporaries = foreachTemporaries(m_training) && !m_options.offloadParams;
        m_foreach = m_sizes.addBuffer(kForeach, temporaries ? bytesOf(overUnits(&UnitSizes::steppedElements), m_storage)
                                                            : Bytes(0));
    }

    std::string structureKey() const override
    {
        return fmt::format("fsdp1 {} {} off{} bwd{} fwd{} limit{} wrap{}/{} sync{} rep{} one{} pad{} p{} r{} d{} {}",
                           m_model.id, nameOf(m_options.sharding), m_options.offloadParams,
                           nameOf(m_options.backwardPrefetch), m_options.forwardPrefetch, m_options.limitAllGathers,
                           nameOf(m_options.wrap), m_options.minNumParams, m_options.noSync, m_replicas.ranks > 1,
                           m_shardRanks == 1, paddingKey(), nameOf(m_compute), nameOf(m_reduce), nameOf(m_storage),
                           activationStructureKey(m_training));
    }

    ModelStates modelStates() const override
    {
        ModelStates states;
        if (m_options.offloadParams)
            return states;
        states.parameters = storedShards();
        states.gradients = bytesOf(overUnits(&UnitSizes::gradientElements), m_storage);
        states.optimizerStates = stateBytes(overUnits(&UnitSizes::steppedElements));
        return states;
    }

    double textbookPsi() const override
    {
        const auto steps = static_cast<double>(m_training.gradientAccumulation);
        if (m_shardRanks == 1)
            return 2;
        const double replication = hybrid(m_options) ? 2.0 / static_cast<double>(m_shardRanks) : 0;
        return (reshardsAfterForward(m_options) ? 3 : 2) * steps + replication;
    }

    std::string psiDifference() const override
    {
        std::string why = "the root unit (embedding, final norm, head) is not resharded after forward and skips its "
                          "second all-gather";
        if (m_training.gradientAccumulation > 1 && m_options.noSync)
            why += "; no_sync reduces only in the last micro-step";
        return why;
    }

    Bytes hostInitPeakPerNode() const override
    {
        const Bytes whole = bytesOf(m_model.parameters(), m_training.precision.load);
        return m_options.cpuRamEfficientLoading ? whole : whole * m_cluster->gpusPerNode;
    }

    CheckpointSize checkpoint() const override
    {
        CheckpointSize size;
        size.full16Bit = bytesOf(m_model.parameters(), DType::Bf16);
        size.fullFp32 = bytesOf(m_model.parameters(), DType::Fp32);
        size.shardedPerRank = storedShards() + stateBytes(overUnits(&UnitSizes::steppedElements));
        size.shardedTotal = size.shardedPerRank * m_shardRanks;
        size.filesPerRank = 2;
        size.layout = "SHARDED_STATE_DICT: torch.distributed.checkpoint folders pytorch_model_fsdp_0 and optimizer_0, "
                      "one .distcp file "
                      "per rank in each; FULL_STATE_DICT gathers everything on rank 0";
        return size;
    }

    int communicators() const override { return m_replicas.ranks > 1 && m_shardRanks > 1 ? 2 : 1; }

    std::vector<Note> assumptions() const override
    {
        std::vector<Note> notes;
        if (m_model.trainableParameters() < m_model.parameters()) {
            if (m_options.useOrigParams)
                notes.push_back(
                    {"a flat parameter that mixes frozen and trainable tensors has a gradient of its whole size",
                     Provenance::Vendor, "PyTorch FSDP documentation, use_orig_params"});
            else
                notes.push_back({"trainable tensors have flat parameters of their own, as PEFT's fsdp_auto_wrap_policy "
                                 "makes them; they are gathered here together with their block",
                                 Provenance::Vendor, "peft/utils/other.py fsdp_auto_wrap_policy"});
        }
        if (!m_options.limitAllGathers)
            notes.push_back({"without limit_all_gathers the host runs a whole pass ahead: no unsharded parameter is "
                             "reused before its end",
                             Provenance::Assumed, "PyTorch issue 98354"});
        return notes;
    }

    std::vector<Note> excluded() const override
    {
        if (!m_training.lora || !m_training.lora->baseDtype)
            return {};
        return {{"block constants of the quantised base, which every rank holds whole, and the dequantised copy of the "
                 "matrix in use",
                 Provenance::Assumed, "bitsandbytes functional.py QuantState"}};
    }

    const ActivationModel* activations() const override { return &m_activations; }

    Schedule emit() const override { return Emission(*this).run(); }

private:
    struct UnitSizes {
        std::int64_t shard = 0;            // elements per rank
        std::int64_t gradientElements = 0; // of those, the ones that have a gradient
        std::int64_t steppedElements = 0;  // of those, the ones that the optimizer steps
        Bytes storedShard;
        bool trains = false;
        bool padded = false; // E is not a multiple of N: the gradient is copied to be padded
        BufferClassId persistent = -1, moments = -1, hostGradient = -1, upload = -1, lowPrecision = -1, unsharded = -1;
        BufferClassId flatGradient = -1, reduceCast = -1, reducePadded = -1, reduceOutput = -1, gradientShard = -1;
        BufferClassId initModule = -1, initFlat = -1;
        PayloadId gather = -1, scatter = -1, replicate = -1, uploadCopy = -1, downloadCopy = -1;
    };

    std::int64_t shardRanks(const PlanInput& input) const
    {
        if (m_options.sharding == ShardingStrategy::NoShard)
            return 1;
        if (hybrid(m_options))
            return m_options.shardGroup > 0 ? m_options.shardGroup
                                            : std::min<std::int64_t>(input.cluster.gpusPerNode, input.ranks());
        return input.ranks(); // a world of one rank falls back to NO_SHARD by itself
    }

    /// bitsandbytes replaces the linear layers of blocks; what stays is in the load dtype.
    bool quantised(const UnitType& type, const ParameterSpec& parameter) const
    {
        return m_training.lora && m_training.lora->baseDtype && !parameter.trainable && !type.root &&
               parameter.shape.size() == 2;
    }

    /// Elements of a unit's flat parameter before padding to N: of all its tensors, or of the trainable ones only.
    /// Packed weights count in elements of the dtype that they are stored in (bnb_4bit_quant_storage).
    std::int64_t flatNumel(const UnitType& type, bool trainableOnly) const
    {
        const std::int64_t alignment = m_options.useOrigParams ? kAlignment / (bitsOf(m_storage) / 8) : 1;
        const DType packedIn = m_options.useOrigParams ? m_storage : m_training.precision.load;
        std::int64_t total = 0;
        for (const ParameterSpec* parameter : type.parameters) {
            if (trainableOnly && !parameter->trainable)
                continue;
            std::int64_t numel = parameter->numel;
            if (quantised(type, *parameter))
                numel = ceilDivide(checkedMultiply(numel, bitsOf(*m_training.lora->baseDtype)), bitsOf(packedIn));
            total = checkedAdd(total, checkedMultiply(roundUp(numel, alignment), parameter->repeat));
        }
        return total;
    }

    void defineUnit(const UnitType& type, UnitSizes& unit)
    {
        const std::int64_t flat = flatNumel(type, false);
        unit.shard = ceilDivide(flat, m_shardRanks);
        unit.trains = type.trainable > 0;
        // With use_orig_params one flat parameter may mix frozen and trainable tensors: its gradient then has its whole
        // size, while the optimizer sees views of the trainable ones. Without it FSDP refuses the mix (flat_param
        // "requires uniform requires_grad"), and PEFT's fsdp_auto_wrap_policy gives the trainable ones flat parameters
        // of their own, which are counted here within the unit.
        const std::int64_t trainableFlat = flatNumel(type, true);
        const bool mixed = unit.trains && type.trainable < type.numel;
        const std::int64_t gradientFlat = !unit.trains ? 0 : m_options.useOrigParams ? flat : trainableFlat;
        unit.gradientElements = ceilDivide(gradientFlat, m_shardRanks);
        unit.steppedElements = ceilDivide(mixed ? trainableFlat : gradientFlat, m_shardRanks);
        unit.padded = flat % m_shardRanks != 0;
        const std::int64_t whole = checkedMultiply(unit.shard, m_shardRanks);
        const std::int64_t trainableShard = unit.gradientElements;
        const std::int64_t trainableWhole = checkedMultiply(unit.gradientElements, m_shardRanks);
        // Accelerate upcasts flat parameters that require a gradient.
        const std::int64_t upcastShard = !unit.trains              ? 0
                                         : m_options.useOrigParams ? unit.shard
                                                                   : unit.gradientElements;
        unit.storedShard = bytesOf(upcastShard, m_storage) +
                           bytesOf(std::max<std::int64_t>(unit.shard - upcastShard, 0), m_training.precision.load);
        const int layer = type.layerType;
        const auto pinned = [](Bytes bytes) {
            return bytes == Bytes(0) ? bytes : Bytes(nextPowerOfTwo(bytes.count()));
        };
        const bool offload = m_options.offloadParams;
        const auto add = [&](const BufferSpec& spec, Bytes bytes) { return m_sizes.addBuffer(spec, bytes, layer); };
        const Bytes storedShard = unit.storedShard;
        unit.persistent = add(offload ? kHostShard : kShard, offload ? pinned(storedShard) : storedShard);
        unit.moments = add(offload ? kHostMoments : kMoments, stateBytes(unit.steppedElements));
        unit.hostGradient = add(kHostGradient, pinned(bytesOf(trainableShard, m_storage)));
        unit.upload = add(kUpload, storedShard);
        unit.lowPrecision = add(kLowPrecisionShard, bytesOf(unit.shard, m_compute));
        unit.unsharded = add(kUnsharded, bytesOf(whole, m_compute));
        unit.flatGradient = add(kFlatGradient, bytesOf(trainableWhole, m_compute));
        unit.reduceCast = add(kReduceCast, bytesOf(trainableWhole, m_reduce));
        unit.reducePadded = add(kReducePadded, bytesOf(trainableWhole, m_reduce));
        unit.reduceOutput = add(kReduceOutput, bytesOf(trainableShard, m_reduce));
        unit.gradientShard = add(kGradientShard, bytesOf(trainableShard, m_storage));
        unit.initModule = add(kInitModule, bytesOf(type.numel, m_training.precision.load));
        unit.initFlat = add(kInitFlat, bytesOf(flat, m_training.precision.load));
        unit.gather = m_sizes.addPayload({"parameters", "c x E", "D3", bytesOf(whole, m_compute), m_compute});
        unit.scatter = m_sizes.addPayload({"gradients", "r x E", "D3", bytesOf(trainableWhole, m_reduce), m_reduce});
        unit.replicate =
            m_sizes.addPayload({"gradient shards", "r x E / N", "D3", bytesOf(trainableShard, m_reduce), m_reduce});
        unit.uploadCopy = m_sizes.addPayload({"shard to the GPU", "d x E / N", "D2", storedShard, m_storage});
        unit.downloadCopy = m_sizes.addPayload(
            {"gradient shard to the host", "d x E / N", "D2", bytesOf(trainableShard, m_storage), m_storage});
    }

    std::string paddingKey() const
    {
        std::string key;
        for (const UnitSizes& unit : m_unitSizes)
            key += unit.padded ? '1' : '0';
        return key;
    }

    Bytes stateBytes(std::int64_t elements) const
    {
        return shardStateBytes(m_training, m_model, elements, m_model.trainableParameters(), m_storage);
    }

    std::int64_t overUnits(std::int64_t UnitSizes::*size) const
    {
        std::int64_t total = 0;
        for (const Unit& unit : m_units.units)
            total = checkedAdd(total, m_unitSizes[static_cast<std::size_t>(unit.type)].*size);
        return total;
    }

    Bytes storedShards() const
    {
        Bytes total;
        for (const Unit& unit : m_units.units)
            total += m_unitSizes[static_cast<std::size_t>(unit.type)].storedShard;
        return total;
    }

    /// Writes one schedule.
    class Emission final : public StageObserver {
    public:
        explicit Emission(const Fsdp1Rules& rules)
            : m_rules(rules), m_builder(rules.m_sizes), m_walk(rules.m_activations), m_units(rules.m_units.units.size())
        {
        }

        Schedule run()
        {
            initialise();
            for (const MicroStep& step : microSteps(m_rules.m_training.gradientAccumulation)) {
                m_builder.beginSegment(step.name, step.repeat);
                microStep(step);
            }
            m_builder.beginSegment("optimizer step");
            optimizerStep();
            return m_builder.finish();
        }

        void beforeStage(Pass pass, int layer, int module) override
        {
            const int unit = unitOf(layer, module);
            if (pass == Pass::Forward)
                preForward(unit);
            else
                preBackward(unit);
        }

        void afterStage(Pass pass, int layer, int module) override
        {
            if (pass != Pass::Backward)
                return;
            const int type = m_rules.m_model.layers[static_cast<std::size_t>(layer)];
            const BufferClassId gradient =
                m_rules.m_gradientOfModule[static_cast<std::size_t>(type)][static_cast<std::size_t>(module)];
            if (gradient >= 0)
                stateOf(unitOf(layer, module)).gradients.push_back(m_builder.allocate(gradient));
        }

    private:
        struct UnitState {
            BufferId unsharded = -1;
            BufferId flatGradient = -1;
            BufferId gradientShard = -1;
            std::vector<BufferId> gradients;
            bool reduced = false;
        };

        int unitOf(int layer, int module) const
        {
            return m_rules.m_units.unitOf[static_cast<std::size_t>(layer)][static_cast<std::size_t>(module)];
        }
        const UnitSizes& sizesOf(int unit) const
        {
            return m_rules
                .m_unitSizes[static_cast<std::size_t>(m_rules.m_units.units[static_cast<std::size_t>(unit)].type)];
        }
        bool empty(int unit) const { return m_rules.m_units.typeOf(unit).numel == 0; }
        bool isRoot(int unit) const { return m_rules.m_units.typeOf(unit).root; }
        UnitState& stateOf(int unit) { return m_units[static_cast<std::size_t>(unit)]; }
        int unitCount() const { return static_cast<int>(m_units.size()); }
        const Fsdp1Options& options() const { return m_rules.m_options; }
        bool sharded() const { return m_rules.m_shardRanks > 1; }
        /// Without sharding and without a low-precision copy, the flat parameter itself is what layers use.
        bool usesShardDirectly() const
        {
            return !sharded() && m_rules.m_compute == m_rules.m_storage && !options().offloadParams;
        }

        void initialise()
        {
            m_builder.beginSegment("initialisation");
            for (int unit = unitCount() - 1; unit >= 0; --unit) { // children are wrapped before the root
                if (empty(unit))
                    continue;
                const UnitSizes& sizes = sizesOf(unit);
                m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
                const BufferId whole = m_builder.allocate(sizes.initModule);
                const BufferId flat = m_builder.allocate(sizes.initFlat);
                m_builder.free(whole);
                m_builder.allocate(sizes.persistent);
                m_builder.free(flat);
                if (options().offloadParams)
                    m_builder.allocate(sizes.hostGradient);
            }
            m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
            for (int unit = 0; unit < unitCount(); ++unit)
                if (sizesOf(unit).trains)
                    m_builder.allocate(sizesOf(unit).moments);
            m_walk.carryOver(m_builder);
        }

        /// The rate limiter: the host waits until the oldest freed unit is really free before it issues a third
        /// all-gather.
        void limitAllGathers()
        {
            if (!options().limitAllGathers)
                return;
            while (m_freed.size() >= kMaximumAllGathersInFlight)
                reclaimOldest();
        }
        void reclaimOldest()
        {
            m_builder.reclaim(m_freed.front());
            m_freed.pop_front();
        }

        void unshard(int unit, Phase phase)
        {
            UnitState& state = stateOf(unit);
            if (state.unsharded >= 0 || empty(unit) || usesShardDirectly())
                return;
            const UnitSizes& sizes = sizesOf(unit);
            BufferId upload = -1;
            if (options().offloadParams) {
                m_builder.op(OpKind::CopyToDevice, Stream::HostToDevice, phase, m_layer);
                m_builder.move(sizes.uploadCopy);
                upload = m_builder.allocate(sizes.upload);
            }
            m_builder.op(sharded() ? OpKind::AllGather : OpKind::Copy, Stream::AllGather, phase, m_layer);
            limitAllGathers();
            const bool casts = m_rules.m_compute != m_rules.m_storage && sharded();
            const BufferId cast = casts ? m_builder.allocate(sizes.lowPrecision) : -1;
            if (upload >= 0 && casts)
                m_builder.free(upload);
            state.unsharded = m_builder.allocate(sizes.unsharded);
            if (cast >= 0)
                m_builder.free(cast);
            if (upload >= 0 && !casts)
                m_builder.free(upload);
            if (sharded())
                m_builder.send(sizes.gather, m_rules.m_shardGroup);
        }

        void reshard(int unit, Phase phase)
        {
            UnitState& state = stateOf(unit);
            if (state.unsharded < 0)
                return;
            m_builder.op(OpKind::Release, Stream::Compute, phase, m_layer);
            m_builder.freeDeferred(state.unsharded);
            m_freed.push_back(state.unsharded);
            state.unsharded = -1;
        }

        void preForward(int unit)
        {
            if (m_open >= 0 && m_open != unit && !isRoot(m_open))
                postForward(m_open);
            const bool fresh = stateOf(unit).unsharded < 0;
            unshard(unit, Phase::Forward);
            if (!isRoot(unit))
                m_open = unit;
            if (fresh && options().forwardPrefetch && unit + 1 < unitCount() && !isRoot(unit))
                unshard(unit + 1, Phase::Forward);
        }

        void postForward(int unit)
        {
            m_open = -1;
            const bool noShardCopy = !sharded(); // NO_SHARD frees its low-precision copy too
            if (reshardsAfterForward(options()) || noShardCopy)
                reshard(unit, Phase::Forward);
        }

        void preBackward(int unit)
        {
            unshard(unit, Phase::Backward);
            if (unit == m_backwardUnit)
                return;
            m_backwardUnit = unit;
            if (options().backwardPrefetch == BackwardPrefetch::Pre)
                prefetchBefore(unit);
        }

        void prefetchBefore(int unit)
        {
            if (isRoot(unit))
                return;
            int next = unit - 1;
            while (next > 0 && empty(next))
                --next;
            if (next > 0 && !stateOf(next).reduced)
                unshard(next, Phase::Backward);
        }

        void postBackward(int unit, const MicroStep& step)
        {
            UnitState& state = stateOf(unit);
            state.reduced = true;
            const bool sync = step.last || !options().noSync;
            const UnitSizes& sizes = sizesOf(unit);
            flattenGradients(state, sizes);
            if (sync || reshardsAfterForward(options()))
                reshard(unit, Phase::Backward);
            if (options().backwardPrefetch == BackwardPrefetch::Post)
                prefetchBefore(unit);
            if (sync && sizes.trains)
                reduce(state, sizes);
        }

        /// Autograd's split backward concatenates the modules' gradients once all of them are there.
        void flattenGradients(UnitState& state, const UnitSizes& sizes)
        {
            if (!sizes.trains)
                return;
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, m_layer);
            const BufferId flat = m_builder.allocate(sizes.flatGradient);
            for (const BufferId gradient : state.gradients)
                m_builder.free(gradient);
            state.gradients.clear();
            if (state.flatGradient >= 0)
                m_builder.free(flat); // added to what no_sync left
            else
                state.flatGradient = flat;
        }

        void reduce(UnitState& state, const UnitSizes& sizes)
        {
            BufferId input = state.flatGradient;
            state.flatGradient = -1;
            const auto replaceInput = [&](BufferClassId with) {
                const BufferId next = m_builder.allocate(with);
                m_builder.free(input);
                input = next;
            };
            m_builder.op(sharded() ? OpKind::ReduceScatter : OpKind::AllReduce, Stream::Reduce, Phase::Backward,
                         m_layer);
            if (m_rules.m_reduce != m_rules.m_compute)
                replaceInput(sizes.reduceCast);
            if (sizes.padded && sharded())
                replaceInput(sizes.reducePadded);
            BufferId output = input;
            const bool casts = m_rules.m_reduce != m_rules.m_storage;
            const bool addsUp = state.gradientShard >= 0;
            const bool keepsOutput = !casts && !addsUp && !options().offloadParams;
            if (sharded()) {
                output = m_builder.allocate(keepsOutput ? sizes.gradientShard : sizes.reduceOutput);
                m_builder.send(sizes.scatter, m_rules.m_shardGroup);
                m_builder.free(input);
                if (m_rules.m_replicas.ranks > 1) {
                    m_builder.op(OpKind::AllReduce, Stream::Replicate, Phase::Backward, m_layer);
                    m_builder.send(sizes.replicate, m_rules.m_replicaGroup);
                }
            } else {
                m_builder.send(sizes.scatter, m_rules.m_replicaGroup);
            }
            if (keepsOutput) {
                state.gradientShard = output;
                return;
            }
            const bool offload = options().offloadParams;
            m_builder.op(offload ? OpKind::CopyToHost : OpKind::Copy, offload ? Stream::DeviceToHost : Stream::Reduce,
                         Phase::Backward, m_layer);
            if (offload)
                m_builder.move(sizes.downloadCopy);
            if (casts) {
                const BufferId converted = m_builder.allocate(sizes.gradientShard);
                m_builder.free(output);
                output = converted;
            }
            if (offload || addsUp)
                m_builder.free(output);
            else
                state.gradientShard = output;
        }

        void microStep(const MicroStep& step)
        {
            const int layers = static_cast<int>(m_rules.m_model.layers.size());
            for (UnitState& state : m_units)
                state.reduced = false;
            m_walk.beginMicroStep(m_builder);
            for (m_layer = 0; m_layer < layers; ++m_layer) {
                m_walk.forward(m_builder, m_layer, *this);
                if (m_open >= 0 && m_rules.m_units.units[static_cast<std::size_t>(m_open)].lastLayer == m_layer)
                    postForward(m_open);
            }
            m_layer = -1;
            m_walk.loss(m_builder);
            m_backwardUnit = -1;
            for (m_layer = layers - 1; m_layer >= 0; --m_layer) {
                m_walk.backward(m_builder, m_layer, *this);
                for (int unit = unitCount() - 1; unit > 0; --unit)
                    if (m_rules.m_units.units[static_cast<std::size_t>(unit)].firstLayer == m_layer && !empty(unit))
                        postBackward(unit, step);
            }
            m_layer = -1;
            if (!empty(0))
                postBackward(0, step);
            m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward); // the host waits for all streams here
            while (!m_freed.empty())
                reclaimOldest();
            m_walk.endMicroStep(m_builder);
        }

        void optimizerStep()
        {
            if (options().offloadParams) {
                m_builder.op(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer);
            } else {
                m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
                m_builder.free(m_builder.allocate(m_rules.m_foreach));
            }
            m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep); // zero_grad(set_to_none=True)
            for (UnitState& state : m_units)
                if (state.gradientShard >= 0)
                    m_builder.free(state.gradientShard);
        }

        const Fsdp1Rules& m_rules;
        ScheduleBuilder m_builder;
        ActivationWalk m_walk;
        std::vector<UnitState> m_units;
        std::deque<BufferId> m_freed;
        int m_open = -1;
        int m_backwardUnit = -1;
        int m_layer = -1;
    };

    const Model& m_model;
    Fsdp1Options m_options;
    DType m_compute;
    DType m_storage;
    DType m_reduce;
    ActivationModel m_activations;
    UnitMap m_units;
    Training m_training;
    const Cluster* m_cluster = nullptr;
    std::int64_t m_shardRanks = 1;
    Group m_replicas;
    GroupId m_shardGroup = -1;
    GroupId m_replicaGroup = -1;
    std::vector<UnitSizes> m_unitSizes;
    std::vector<std::vector<BufferClassId>> m_gradientOfModule;
    BufferClassId m_foreach = -1;
};

} // namespace

std::vector<std::string> fsdp1Refusals(const PlanInput& input)
{
    const auto& options = std::get<Fsdp1Options>(input.strategy.options);
    std::vector<std::string> reasons;
    if (hybrid(options) && options.shardGroup > 0 && input.ranks() % options.shardGroup != 0)
        reasons.push_back(fmt::format("{} ranks cannot be divided into shard groups of {} ({})", input.ranks(),
                                      options.shardGroup, nameOf(options.sharding)));
    if (options.offloadParams && input.training.gradientAccumulation > 1 && !options.noSync)
        reasons.push_back(
            "FSDP1 with CPUOffload cannot accumulate gradients outside no_sync(): each micro-step overwrites the "
            "gradient on the host (torch.distributed.fsdp documentation, limitations)");
    if (options.cpuRamEfficientLoading && !options.syncModuleStates)
        reasons.push_back("fsdp_cpu_ram_efficient_loading needs fsdp_sync_module_states: the other ranks would train "
                          "on uninitialised "
                          "weights (Accelerate raises ValueError)");
    return reasons;
}

std::unique_ptr<FrameworkRules> makeFsdp1Rules(const PlanInput& input)
{
    return std::make_unique<Fsdp1Rules>(input);
}

} // namespace shardwright
