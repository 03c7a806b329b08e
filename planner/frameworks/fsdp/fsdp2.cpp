// FSDP2: torch.distributed.fsdp.fully_shard. Sources: torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py,
// _fsdp_param_group.py, _fsdp_param.py, _fsdp_state.py ("param_group", "collectives", ... below); Accelerate
// utils/fsdp_utils.py for what it adds (upcast, units, reduce dtype).

#include <algorithm>

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

constexpr BufferSpec kShard{"sharded parameters of a unit",
                            "d x sum of ceil(dim0/N) x rest",
                            "_fsdp_param.py _init_sharded_param",
                            C::Parameters,
                            Place::Gpu,
                            S::Compute,
                            L::Persistent};
constexpr BufferSpec kMoments{"optimizer states of a unit's shard",
                              "moments x d x shard",
                              "torch.optim",
                              C::OptimizerStates,
                              Place::Gpu,
                              S::Compute,
                              L::FromFirstStep};
constexpr BufferSpec kShardCast{"shard cast to the compute dtype", "c x shard", "_fsdp_param.py all_gather_inputs",
                                C::CommunicationBuffers,           Place::Gpu,  S::AllGather};
constexpr BufferSpec kShardUpload{
    "shard copied from the host", "d x shard", "_fsdp_param.py all_gather_inputs, CPUOffloadPolicy",
    C::CommunicationBuffers,      Place::Gpu,  S::AllGather};
constexpr BufferSpec kGathered{
    "all-gather output of a unit", "c x shard x N", "_fsdp_collectives.py foreach_all_gather",
    C::CommunicationBuffers,       Place::Gpu,      S::AllGather};
constexpr BufferSpec kUnsharded{"unsharded parameters of a unit", "c x shard x N",
                                "_fsdp_collectives.py foreach_all_gather_copy_out", C::GatheredParameters};
constexpr BufferSpec kModuleGradient{"unsharded gradient of a module", "c x numel", "torch autograd", C::Gradients};
constexpr BufferSpec kAccumulated{"unsharded gradients accumulated without reduction", "r x numel",
                                  "_fsdp_param.py to_accumulated_grad_if_needed", C::Gradients};
constexpr BufferSpec kReduceInput{"reduce-scatter input of a unit", "r x shard x N",
                                  "_fsdp_collectives.py foreach_reduce", C::CommunicationBuffers};
constexpr BufferSpec kReduceOutput{
    "reduce-scatter output of a unit", "r x shard", "_fsdp_collectives.py foreach_reduce",
    C::CommunicationBuffers,           Place::Gpu,  S::Reduce};
constexpr BufferSpec kGradientShard{"sharded gradients of a unit",
                                    "d x shard",
                                    "_fsdp_collectives.py foreach_reduce",
                                    C::Gradients,
                                    Place::Gpu,
                                    S::Reduce};
constexpr BufferSpec kForeach{"temporaries of the foreach optimizer", "d x shards",
                              "torch/optim/adamw.py _multi_tensor_adamw", C::Temporaries};
constexpr BufferSpec kHostShard{"sharded parameters in host memory",
                                "d x shard, each tensor rounded up to a power of two when pinned",
                                "_fsdp_param.py offload_to_cpu; CachingHostAllocatorImpl PowerOf2Ceil",
                                C::Parameters,
                                Place::HostPinned,
                                S::Host,
                                L::Persistent};
constexpr BufferSpec kHostGradient{"sharded gradients in host memory",
                                   "d x shard",
                                   "_fsdp_collectives.py foreach_reduce",
                                   C::Gradients,
                                   Place::HostPinned,
                                   S::Host,
                                   L::Persistent};
constexpr BufferSpec kHostMoments{"optimizer states in host memory",
                                  "moments x d x shard",
                                  "torch.optim on CPU",
                                  C::OptimizerStates,
                                  Place::HostPageable,
                                  S::Host,
                                  L::FromFirstStep};
constexpr BufferSpec kInitModule{"unsharded module while it is sharded", "l x numel",
                                 "fully_shard moves managed states to the GPU", C::Temporaries};

class Fsdp2Rules final : public FrameworkRules {
public:
    explicit Fsdp2Rules(const PlanInput& input)
        : m_model(input.model), m_options(std::get<Fsdp2Options>(input.strategy.options)),
          m_compute(m_options.paramDtype.value_or(computeDtype(input.training.precision))),
          m_storage(input.training.precision.mixed && m_options.upcastTrainable ? DType::Fp32
                                                                                : input.training.precision.load),
          m_reduce(m_options.reduceDtype.value_or(m_compute)),
          m_activations(input.model, input.training, m_compute, {m_options.checkpointChildren}),
          m_units(unitsOf(input.model, {m_options.wrap, m_options.minNumParams, m_options.separateHeadUnit}))
    {
        resize(input);
    }

    void resize(const PlanInput& input) override
    {
        m_training = input.training;
        m_options = std::get<Fsdp2Options>(input.strategy.options);
        m_cluster = &input.cluster;
        m_shardRanks = shardRanks(input);
        m_sizes.clear();
        m_activations.defineSizes(m_sizes, m_training);
        defineGroups(input);
        for (std::size_t type = 0; type < m_units.types.size(); ++type)
            defineUnit(type);
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
        m_foreach = m_sizes.addBuffer(kForeach, foreachTemporaries(m_training) && !m_options.offloadParams
                                                    ? bytesOf(trainableShard(), m_storage)
                                                    : Bytes(0));
    }

    std::string structureKey() const override
    {
        return fmt::format(
            "fsdp2 {} reshard{}/{} last{} wrap{}/{} sep{} off{}/{} fwd{} sync{} hsdp{} p{} r{} d{} child{} {}",
            m_model.id, m_options.reshardAfterForward, m_options.reshardGroup > 0, m_options.keepLastBlock,
            nameOf(m_options.wrap), m_options.minNumParams, m_options.separateHeadUnit, m_options.offloadParams,
            m_options.pinMemory, m_options.forwardPrefetch, m_options.noSync, m_replicas.ranks > 1, nameOf(m_compute),
            nameOf(m_reduce), nameOf(m_storage), m_options.checkpointChildren, activationStructureKey(m_training));
    }

    ModelStates modelStates() const override
    {
        ModelStates states;
        if (m_options.offloadParams)
            return states;
        states.parameters = bytesOf(shardAll(), m_storage);
        states.gradients = bytesOf(trainableShard(), m_storage);
        states.optimizerStates = stateBytes(trainableShard());
        return states;
    }

    double textbookPsi() const override
    {
        const double perMicroStep = m_shardRanks == 1 ? 0 : m_options.reshardAfterForward ? 3 : 2;
        const double replication = m_shardRanks == 1      ? 2
                                   : m_replicas.ranks > 1 ? 2.0 / static_cast<double>(m_shardRanks)
                                                          : 0;
        return perMicroStep * static_cast<double>(m_training.gradientAccumulation) + replication;
    }

    std::string psiDifference() const override
    {
        std::string why =
            "units that are not resharded after forward (root, final norm and head) skip their second all-gather";
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
        size.shardedPerRank = bytesOf(shardAll(), m_storage) + stateBytes(trainableShard());
        size.shardedTotal = size.shardedPerRank * m_shardRanks;
        size.filesPerRank = 2;
        size.layout =
            "SHARDED_STATE_DICT: torch.distributed.checkpoint folders for model and optimizer, one .distcp file per "
            "rank in each, and .metadata";
        return size;
    }

    int communicators() const override { return m_replicas.ranks > 1 && m_shardRanks > 1 ? 2 : 1; }

    std::vector<Note> assumptions() const override
    {
        std::vector<Note> notes;
        if (m_options.checkpointChildren)
            notes.push_back({"the children of a block are recomputed together, as its recomputation would be; child by "
                             "child is less",
                             Provenance::Assumed, "Accelerate fsdp2_apply_ac"});
        return notes;
    }

    const ActivationModel* activations() const override { return &m_activations; }

    Schedule emit() const override { return Emission(*this).run(); }

private:
    struct UnitSizes {
        std::int64_t shard = 0;          // elements of all parameters, per rank, padded
        std::int64_t trainableShard = 0; // of the trainable ones
        std::int64_t trainable = 0;      // unsharded, unpadded
        BufferClassId persistent = -1;
        BufferClassId moments = -1;
        BufferClassId hostGradient = -1;
        BufferClassId upload = -1;
        BufferClassId cast = -1;
        BufferClassId gathered = -1;
        BufferClassId unsharded = -1;
        BufferClassId accumulated = -1;
        BufferClassId reduceInput = -1;
        BufferClassId reduceOutput = -1;
        BufferClassId gradientShard = -1;
        BufferClassId init = -1;
        PayloadId gather = -1;
        PayloadId scatter = -1;
        PayloadId replicate = -1;
        PayloadId uploadCopy = -1;
        PayloadId downloadCopy = -1;
    };

    std::int64_t shardRanks(const PlanInput& input) const
    {
        if (m_options.noShard)
            return 1;
        const std::int64_t replicate = m_options.replicate == 0 ? input.cluster.nodes : m_options.replicate;
        return input.ranks() / replicate;
    }

    void defineGroups(const PlanInput& input)
    {
        m_replicas = replicaGroup(input.cluster, m_shardRanks);
        m_shardGroup = m_sizes.addGroup(
            {m_replicas.ranks > 1 ? "shard" : "world", m_shardRanks, nodesOfConsecutive(input.cluster, m_shardRanks)});
        m_replicaGroup = m_sizes.addGroup(m_replicas);
        const std::int64_t small = std::max<std::int64_t>(1, m_options.reshardGroup);
        m_reshardGroupId = m_sizes.addGroup({"reshard", small, nodesOfConsecutive(input.cluster, small)});
    }

    /// fully_shard pads dimension 0 of every parameter to a multiple of N.
    std::int64_t shardOf(const ParameterSpec& parameter) const
    {
        const std::int64_t rows = parameter.shape.empty() ? 1 : parameter.shape[0];
        const std::int64_t rest = parameter.numel / std::max<std::int64_t>(1, rows);
        return checkedMultiply(checkedMultiply(ceilDivide(rows, m_shardRanks), rest), parameter.repeat);
    }

    Bytes pinned(const ParameterSpec& parameter) const
    {
        const Bytes exact = bytesOf(shardOf(parameter) / parameter.repeat, m_storage);
        const Bytes each = m_options.pinMemory ? Bytes(nextPowerOfTwo(exact.count())) : exact;
        return each * parameter.repeat;
    }

    void defineUnit(std::size_t index)
    {
        const UnitType& type = m_units.types[index];
        UnitSizes unit;
        Bytes hostParameters;
        Bytes hostGradients;
        for (const ParameterSpec* parameter : type.parameters) {
            const std::int64_t shard = shardOf(*parameter);
            unit.shard = checkedAdd(unit.shard, shard);
            if (parameter->trainable)
                unit.trainableShard = checkedAdd(unit.trainableShard, shard);
            if (m_options.offloadParams) {
                hostParameters += pinned(*parameter);
                if (parameter->trainable)
                    hostGradients += pinned(*parameter);
            }
        }
        unit.trainable = type.trainable;
        const std::int64_t whole = checkedMultiply(unit.shard, m_shardRanks);
        const std::int64_t wholeTrainable = checkedMultiply(unit.trainableShard, m_shardRanks);
        const int layer = type.layerType;
        const bool offload = m_options.offloadParams;
        unit.persistent = m_sizes.addBuffer(offload ? kHostShard : kShard,
                                            offload ? hostParameters : bytesOf(unit.shard, m_storage), layer);
        unit.moments = m_sizes.addBuffer(offload ? kHostMoments : kMoments, stateBytes(unit.trainableShard), layer);
        unit.hostGradient = m_sizes.addBuffer(kHostGradient, hostGradients, layer);
        unit.upload = m_sizes.addBuffer(kShardUpload, bytesOf(unit.shard, m_storage), layer);
        unit.cast = m_sizes.addBuffer(kShardCast, bytesOf(unit.shard, m_compute), layer);
        unit.gathered = m_sizes.addBuffer(kGathered, bytesOf(whole, m_compute), layer);
        unit.unsharded = m_sizes.addBuffer(kUnsharded, bytesOf(whole, m_compute), layer);
        unit.accumulated = m_sizes.addBuffer(kAccumulated, bytesOf(unit.trainable, m_reduce), layer);
        unit.reduceInput = m_sizes.addBuffer(kReduceInput, bytesOf(wholeTrainable, m_reduce), layer);
        unit.reduceOutput = m_sizes.addBuffer(kReduceOutput, bytesOf(unit.trainableShard, m_reduce), layer);
        unit.gradientShard = m_sizes.addBuffer(kGradientShard, bytesOf(unit.trainableShard, m_storage), layer);
        unit.init = m_sizes.addBuffer(kInitModule, bytesOf(type.numel, m_training.precision.load), layer);
        unit.gather = m_sizes.addPayload({"parameters", "c x shard x N", "D3", bytesOf(whole, m_compute), m_compute});
        unit.scatter =
            m_sizes.addPayload({"gradients", "r x shard x N", "D3", bytesOf(wholeTrainable, m_reduce), m_reduce});
        unit.replicate = m_sizes.addPayload(
            {"gradient shards", "r x shard", "D3", bytesOf(unit.trainableShard, m_reduce), m_reduce});
        unit.uploadCopy =
            m_sizes.addPayload({"shard to the GPU", "d x shard", "D2", bytesOf(unit.shard, m_storage), m_storage});
        unit.downloadCopy = m_sizes.addPayload(
            {"gradient shard to the host", "d x shard", "D2", bytesOf(unit.trainableShard, m_storage), m_storage});
        if (m_unitSizes.size() <= index)
            m_unitSizes.resize(index + 1);
        m_unitSizes[index] = unit;
    }

    Bytes stateBytes(std::int64_t elements) const
    {
        return shardStateBytes(m_training, m_model, elements, m_model.trainableParameters(), m_storage);
    }

    std::int64_t sumOverUnits(std::int64_t UnitSizes::*member) const
    {
        std::int64_t total = 0;
        for (const Unit& unit : m_units.units)
            total = checkedAdd(total, m_unitSizes[static_cast<std::size_t>(unit.type)].*member);
        return total;
    }
    std::int64_t shardAll() const { return sumOverUnits(&UnitSizes::shard); }
    std::int64_t trainableShard() const { return sumOverUnits(&UnitSizes::trainableShard); }

    /// Writes one schedule.
    class Emission final : public StageObserver {
    public:
        explicit Emission(const Fsdp2Rules& rules)
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
            if (pass == Pass::Forward) {
                if (m_open >= 0 && m_open != unit && !m_rules.m_units.typeOf(m_open).root)
                    closeForward(m_open);
                unshardForForward(unit);
                if (!m_rules.m_units.typeOf(unit).root)
                    m_open = unit;
                return;
            }
            preBackward(unit);
        }

        void afterStage(Pass pass, int layer, int module) override
        {
            if (pass != Pass::Backward)
                return;
            const int type = m_rules.m_model.layers[static_cast<std::size_t>(layer)];
            const BufferClassId gradient =
                m_rules.m_gradientOfModule[static_cast<std::size_t>(type)][static_cast<std::size_t>(module)];
            if (gradient < 0)
                return;
            UnitState& state = m_units[static_cast<std::size_t>(unitOf(layer, module))];
            const auto key = std::make_pair(layer, module);
            const BufferId buffer = m_builder.allocate(gradient);
            if (std::find(state.gradientOf.begin(), state.gradientOf.end(), key) != state.gradientOf.end()) {
                m_builder.free(buffer); // a tied weight's second gradient is added to the first in place
                return;
            }
            state.gradientOf.push_back(key);
            state.gradients.push_back(buffer);
        }

    private:
        struct UnitState {
            BufferId gathered = -1;
            BufferId unsharded = -1;
            BufferId accumulated = -1;
            BufferId gradientShard = -1;
            bool hostGradient = false;
            std::vector<BufferId> gradients;
            std::vector<std::pair<int, int>> gradientOf;
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
        UnitState& stateOf(int unit) { return m_units[static_cast<std::size_t>(unit)]; }
        int unitCount() const { return static_cast<int>(m_units.size()); }

        /// Units that stay unsharded from forward to backward.
        bool staysUnsharded(int unit) const
        {
            const UnitType& type = m_rules.m_units.typeOf(unit);
            if (!m_rules.m_options.reshardAfterForward || type.root || type.name == "final norm and head")
                return true;
            return m_rules.m_options.keepLastBlock && unit == lastBlock();
        }
        int lastBlock() const
        {
            for (int unit = unitCount() - 1; unit >= 0; --unit)
                if (m_rules.m_units.typeOf(unit).name == "block")
                    return unit;
            return -1;
        }

        void initialise()
        {
            m_builder.beginSegment("initialisation");
            for (int unit = 0; unit < unitCount(); ++unit) {
                if (empty(unit))
                    continue;
                const UnitSizes& sizes = sizesOf(unit);
                m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
                const BufferId whole = m_builder.allocate(sizes.init);
                m_builder.allocate(sizes.persistent);
                if (m_rules.m_options.offloadParams)
                    m_builder.allocate(sizes.hostGradient);
                m_builder.free(whole);
            }
            m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
            for (int unit = 0; unit < unitCount(); ++unit)
                if (sizesOf(unit).trainableShard > 0)
                    m_builder.allocate(sizesOf(unit).moments);
            m_walk.carryOver(m_builder);
        }

        void allGather(int unit, Phase phase, bool secondary)
        {
            const UnitSizes& sizes = sizesOf(unit);
            BufferId upload = -1;
            if (m_rules.m_options.offloadParams) {
                m_builder.op(OpKind::CopyToDevice, Stream::HostToDevice, phase, m_layer);
                m_builder.move(sizes.uploadCopy);
                upload = m_builder.allocate(sizes.upload);
            }
            m_builder.op(OpKind::AllGather, Stream::AllGather, phase, m_layer);
            const bool casts = m_rules.m_compute != m_rules.m_storage;
            const BufferId cast = casts ? m_builder.allocate(sizes.cast) : -1;
            if (upload >= 0)
                m_builder.free(upload);
            stateOf(unit).gathered = m_builder.allocate(sizes.gathered);
            if (cast >= 0)
                m_builder.free(cast);
            m_builder.send(sizes.gather, secondary && m_rules.m_options.reshardGroup > 0 ? m_rules.m_reshardGroupId
                                                                                         : m_rules.m_shardGroup);
        }

        void copyOut(int unit, Phase phase)
        {
            m_builder.op(OpKind::Copy, Stream::Compute, phase, m_layer);
            stateOf(unit).unsharded = m_builder.allocate(sizesOf(unit).unsharded);
        }

        void unshardForForward(int unit)
        {
            UnitState& state = stateOf(unit);
            if (state.unsharded >= 0 || empty(unit))
                return;
            if (state.gathered < 0)
                allGather(unit, Phase::Forward, false);
            copyOut(unit, Phase::Forward);
            // In forward the previous unit's output is held until this copy-out (param_group wait_for_unshard).
            freePreviousGather();
            m_previousGather = state.gathered;
            state.gathered = -1;
            if (m_rules.m_options.forwardPrefetch && unit + 1 < unitCount() && stateOf(unit + 1).gathered < 0 &&
                stateOf(unit + 1).unsharded < 0)
                allGather(unit + 1, Phase::Forward, false);
        }

        void freePreviousGather()
        {
            if (m_previousGather >= 0)
                m_builder.free(m_previousGather);
            m_previousGather = -1;
        }

        void closeForward(int unit)
        {
            m_open = -1;
            UnitState& state = stateOf(unit);
            if (staysUnsharded(unit) || state.unsharded < 0)
                return;
            m_builder.op(OpKind::Release, Stream::Compute, Phase::Forward, m_layer);
            m_builder.free(state.unsharded);
            state.unsharded = -1;
        }

        void preBackward(int unit)
        {
            UnitState& state = stateOf(unit);
            if (state.unsharded < 0 && !empty(unit)) {
                if (state.gathered < 0)
                    allGather(unit, Phase::Backward, true);
                copyOut(unit, Phase::Backward);
                m_builder.free(state.gathered);
                state.gathered = -1;
            }
            if (unit == m_backwardUnit)
                return;
            m_backwardUnit = unit;
            prefetchBefore(unit);
        }

        /// In pre-backward the unit before (in forward order) is gathered ahead (param_group _backward_prefetch).
        void prefetchBefore(int unit)
        {
            int next = unit - 1;
            while (next >= 0 && (empty(next) || stateOf(next).unsharded >= 0))
                --next;
            if (next < 0 || stateOf(next).gathered >= 0 || m_rules.m_units.typeOf(unit).root ||
                m_reduced[static_cast<std::size_t>(next)])
                return;
            allGather(next, Phase::Backward, true);
        }

        void postBackward(int unit, const MicroStep& step)
        {
            UnitState& state = stateOf(unit);
            m_reduced[static_cast<std::size_t>(unit)] = true;
            const bool sync = step.last || !m_rules.m_options.noSync;
            const UnitSizes& sizes = sizesOf(unit);
            if (state.unsharded >= 0 && (m_rules.m_options.reshardAfterForward || sync)) {
                m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward, m_layer);
                m_builder.free(state.unsharded);
                state.unsharded = -1;
            }
            if (sizes.trainable == 0)
                return;
            if (!sync) {
                accumulate(state, sizes);
                return;
            }
            m_builder.op(OpKind::ReduceScatter, Stream::Reduce, Phase::Backward, m_layer);
            if (m_previousReduceInput >= 0)
                m_builder.free(m_previousReduceInput);
            m_previousReduceInput = m_builder.allocate(sizes.reduceInput);
            freeGradients(state);
            if (state.accumulated >= 0)
                m_builder.free(state.accumulated);
            state.accumulated = -1;
            const bool casts = m_rules.m_reduce != m_rules.m_storage;
            const bool addsUp = state.gradientShard >= 0;
            BufferId output = m_builder.allocate(casts || addsUp ? sizes.reduceOutput : sizes.gradientShard);
            m_builder.send(sizes.scatter, m_rules.m_shardGroup);
            if (m_rules.m_replicas.ranks > 1) {
                m_builder.op(OpKind::AllReduce, Stream::Replicate, Phase::Backward, m_layer);
                m_builder.send(sizes.replicate, m_rules.m_replicaGroup);
            }
            if (m_rules.m_options.offloadParams) {
                download(output, sizes, casts);
                return;
            }
            if (!casts && !addsUp) {
                state.gradientShard = output;
                return;
            }
            m_builder.op(OpKind::Copy, Stream::Reduce, Phase::Backward, m_layer);
            if (!addsUp) {
                state.gradientShard = m_builder.allocate(sizes.gradientShard);
            } else if (casts) {
                const BufferId converted = m_builder.allocate(sizes.gradientShard);
                m_builder.free(converted);
            }
            m_builder.free(output);
        }

        void download(BufferId output, const UnitSizes& sizes, bool casts)
        {
            m_builder.op(OpKind::CopyToHost, Stream::DeviceToHost, Phase::Backward, m_layer);
            m_builder.move(sizes.downloadCopy);
            if (casts) {
                const BufferId converted = m_builder.allocate(sizes.gradientShard);
                m_builder.free(output);
                output = converted;
            }
            m_builder.free(output);
        }

        void accumulate(UnitState& state, const UnitSizes& sizes)
        {
            if (state.accumulated < 0) {
                if (m_rules.m_reduce == m_rules.m_compute)
                    m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward,
                                 m_layer); // the gradients themselves stay
                else
                    m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, m_layer);
                if (m_rules.m_reduce == m_rules.m_compute)
                    freeGradients(state);
                state.accumulated = m_builder.allocate(sizes.accumulated);
            } else {
                m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, m_layer);
            }
            freeGradients(state);
        }

        void freeGradients(UnitState& state)
        {
            for (const BufferId gradient : state.gradients)
                m_builder.free(gradient);
            state.gradients.clear();
            state.gradientOf.clear();
        }

        void microStep(const MicroStep& step)
        {
            const int layers = static_cast<int>(m_rules.m_model.layers.size());
            m_reduced.assign(m_units.size(), false);
            m_walk.beginMicroStep(m_builder);
            for (m_layer = 0; m_layer < layers; ++m_layer) {
                m_walk.forward(m_builder, m_layer, *this);
                if (m_open >= 0 && m_rules.m_units.units[static_cast<std::size_t>(m_open)].lastLayer == m_layer)
                    closeForward(m_open);
            }
            m_layer = -1;
            m_walk.loss(m_builder);
            m_backwardUnit = -1;
            for (m_layer = layers - 1; m_layer >= 0; --m_layer) {
                m_walk.backward(m_builder, m_layer, *this);
                if (m_layer == layers - 1 && m_previousGather >= 0) {
                    m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward, m_layer);
                    freePreviousGather();
                }
                for (int unit = unitCount() - 1; unit > 0; --unit)
                    if (m_rules.m_units.units[static_cast<std::size_t>(unit)].firstLayer == m_layer && !empty(unit))
                        postBackward(unit, step);
            }
            m_layer = -1;
            if (!empty(0))
                postBackward(0, step);
            if (m_previousReduceInput >= 0) {
                m_builder.op(OpKind::Release, Stream::Reduce, Phase::Backward);
                m_builder.free(m_previousReduceInput);
                m_previousReduceInput = -1;
            }
            m_walk.endMicroStep(m_builder);
        }

        void optimizerStep()
        {
            if (m_rules.m_options.offloadParams) {
                m_builder.op(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer);
            } else {
                m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
                const BufferId temporaries = m_builder.allocate(m_rules.m_foreach);
                m_builder.free(temporaries);
            }
            m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep); // zero_grad(set_to_none=True)
            for (UnitState& state : m_units) {
                if (state.gradientShard >= 0)
                    m_builder.free(state.gradientShard);
                state.gradientShard = -1;
            }
        }

        const Fsdp2Rules& m_rules;
        ScheduleBuilder m_builder;
        ActivationWalk m_walk;
        std::vector<UnitState> m_units;
        std::vector<bool> m_reduced;
        BufferId m_previousGather = -1;
        BufferId m_previousReduceInput = -1;
        int m_open = -1;
        int m_backwardUnit = -1;
        int m_layer = -1;
    };

    const Model& m_model;
    Fsdp2Options m_options;
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
    GroupId m_reshardGroupId = -1;
    std::vector<UnitSizes> m_unitSizes;
    std::vector<std::vector<BufferClassId>> m_gradientOfModule;
    BufferClassId m_foreach = -1;
};

} // namespace

std::vector<std::string> fsdp2Refusals(const PlanInput& input)
{
    const auto& options = std::get<Fsdp2Options>(input.strategy.options);
    std::vector<std::string> reasons;
    const std::int64_t ranks = input.ranks();
    const std::int64_t replicate = options.replicate == 0 ? input.cluster.nodes : options.replicate;
    if (ranks % replicate != 0)
        reasons.push_back(
            fmt::format("{} ranks cannot be laid out as {} replicas of equal shard groups", ranks, replicate));
    if (options.reshardGroup > 0 && (ranks / replicate) % options.reshardGroup != 0)
        reasons.push_back(fmt::format("reshard_after_forward={} does not divide the shard group of {}",
                                      options.reshardGroup, ranks / replicate));
    return reasons;
}

std::unique_ptr<FrameworkRules> makeFsdp2Rules(const PlanInput& input)
{
    return std::make_unique<Fsdp2Rules>(input);
}

} // namespace shardwright
