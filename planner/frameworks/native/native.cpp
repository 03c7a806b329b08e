// The textbook schedule (ZeRO, arXiv 1910.02054 sec. 5 and 7), layer by layer, with no framework's buffers: what
// shardrun executes. 16-bit training keeps 16-bit parameters and gradients and fp32 master weights and moments; fp32
// training keeps everything once. Shards are padded per layer to a multiple of N.

#include <algorithm>

#include <fmt/format.h>

#include "planner/activations/activation_model.hpp"
#include "planner/frameworks/optimizer_rules.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr std::string_view kPaper = "ZeRO (arXiv 1910.02054) sec. 5";

constexpr BufferSpec kParameters{
    "parameters of a layer", "c x P_l, / N with stage 3", kPaper, C::Parameters, Place::Gpu, S::Compute, L::Persistent};
constexpr BufferSpec kMaster{
    "master parameters of a layer", "4 x P_l / N", kPaper, C::MasterParameters, Place::Gpu, S::Compute, L::Persistent};
constexpr BufferSpec kMoments{
    "optimizer states of a layer", "8 x P_l / N", kPaper, C::OptimizerStates, Place::Gpu, S::Compute, L::FromFirstStep};
constexpr BufferSpec kHostMaster{"master parameters in host memory",
                                 "4 x P_l / N",
                                 kPaper,
                                 C::MasterParameters,
                                 Place::HostPageable,
                                 S::Host,
                                 L::Persistent};
constexpr BufferSpec kHostMoments{"optimizer states in host memory",
                                  "8 x P_l / N",
                                  kPaper,
                                  C::OptimizerStates,
                                  Place::HostPageable,
                                  S::Host,
                                  L::FromFirstStep};
constexpr BufferSpec kGathered{
    "gathered parameters of a layer", "c x P_l", kPaper, C::GatheredParameters, Place::Gpu, S::AllGather};
constexpr BufferSpec kGradient{"gradient of a module", "c x numel", kPaper, C::Gradients};
constexpr BufferSpec kGradientShard{
    "gradient shard of a layer", "c x P_l / N", kPaper, C::Gradients, Place::Gpu, S::Reduce};

class NativeRules final : public FrameworkRules {
public:
    explicit NativeRules(const PlanInput& input)
        : m_model(input.model), m_compute(computeDtype(input.training.precision)),
          m_activations(input.model, input.training, m_compute)
    {
        resize(input);
    }

    void resize(const PlanInput& input) override
    {
        m_training = input.training;
        m_options = std::get<NativeOptions>(input.strategy.options);
        m_cluster = &input.cluster;
        m_ranks = input.ranks();
        m_sizes.clear();
        m_activations.defineSizes(m_sizes, m_training);
        m_world = m_sizes.addGroup({"world", m_ranks, nodesOfConsecutive(input.cluster, m_ranks)});
        m_types.assign(m_model.layerTypes.size(), {});
        for (std::size_t type = 0; type < m_types.size(); ++type)
            defineType(static_cast<int>(type), m_types[type]);
        std::int64_t stepped = 0;
        for (const int type : m_model.layers)
            stepped = checkedAdd(stepped, optimizerElements(m_types[static_cast<std::size_t>(type)]));
        m_clip = m_sizes.addPayload({"gradient norm and clipping", "3 c x P / N", kPaper,
                                     clippingBytes(m_training, bytesOf(stepped, m_compute)), m_compute});
        // One kernel a layer; parameters are written in the compute dtype too.
        m_step = m_sizes.addPayload({"optimizer step", "accesses x P / N", kPaper,
                                     optimizerStepBytes(m_training.optimizer, OptimizerForm::Fused, stepped,
                                                        {DType::Fp32, m_compute, DType::Fp32}) +
                                         (mixed() ? bytesOf(stepped, m_compute) : Bytes(0)),
                                     DType::Fp32});
    }

    std::string structureKey() const override
    {
        return fmt::format("native {} stage{} prefetch{} off{} {}", m_model.id, m_options.stage, m_options.prefetch,
                           m_options.offloadOptimizer, activationStructureKey(m_training));
    }

    ModelStates modelStates() const override
    {
        ModelStates states;
        for (std::size_t type = 0; type < m_types.size(); ++type) {
            const std::int64_t count = m_model.layersOfType(static_cast<int>(type));
            const TypeSizes& sizes = m_types[type];
            states.parameters += bytesOf(m_options.stage >= 3 ? sizes.shard : sizes.all, m_compute) * count;
            states.gradients +=
                bytesOf(m_options.stage >= 2 ? sizes.trainableShard : sizes.trainable, m_compute) * count;
            if (m_options.offloadOptimizer)
                continue;
            if (mixed())
                states.masterParameters += bytesOf(optimizerElements(sizes), DType::Fp32) * count;
            states.optimizerStates += stateBytes(optimizerElements(sizes)) * count;
        }
        return states;
    }

    double textbookPsi() const override
    {
        const auto steps = static_cast<double>(m_training.gradientAccumulation);
        switch (m_options.stage) {
        case 3: return 3 * steps;
        case 2: return steps + 1;
        default: return 2;
        }
    }

    Bytes hostInitPeakPerNode() const override { return bytesOf(m_model.parameters(), m_training.precision.load); }

    CheckpointSize checkpoint() const override
    {
        CheckpointSize size;
        size.full16Bit = bytesOf(m_model.parameters(), DType::Bf16);
        size.fullFp32 = bytesOf(m_model.parameters(), DType::Fp32);
        for (std::size_t type = 0; type < m_types.size(); ++type) {
            const std::int64_t elements = optimizerElements(m_types[type]);
            size.shardedPerRank +=
                (bytesOf(elements, DType::Fp32) + stateBytes(elements)) * m_model.layersOfType(static_cast<int>(type));
        }
        size.shardedTotal = size.shardedPerRank * (m_options.stage == 0 ? 1 : m_ranks);
        size.filesPerRank = 1;
        size.layout = "one file a rank with master weights and moments, and a manifest";
        return size;
    }

    const ActivationModel* activations() const override { return &m_activations; }

    Schedule emit() const override { return Emission(*this).run(); }

private:
    struct TypeSizes {
        std::int64_t all = 0, trainable = 0, shard = 0, trainableShard = 0; // elements
        BufferClassId parameters = -1, master = -1, moments = -1, gathered = -1, gradientShard = -1;
        std::vector<BufferClassId> gradients; // by module
        PayloadId gather = -1, reduce = -1, toHost = -1, toDevice = -1, addShard = -1;
        std::vector<PayloadId> accumulations; // by module
    };

    bool mixed() const { return m_compute != DType::Fp32; }
    std::int64_t optimizerElements(const TypeSizes& sizes) const
    {
        return m_options.stage >= 1 ? sizes.trainableShard : sizes.trainable;
    }
    Bytes stateBytes(std::int64_t elements) const
    {
        return shardStateBytes(m_training, m_model, elements, m_model.trainableParameters(), DType::Fp32);
    }

    void defineType(int index, TypeSizes& sizes)
    {
        const LayerType& type = m_model.layerTypes[static_cast<std::size_t>(index)];
        sizes.all = type.numel();
        sizes.trainable = type.trainableNumel();
        sizes.shard = ceilDivide(sizes.all, m_ranks);
        sizes.trainableShard = ceilDivide(sizes.trainable, m_ranks);
        const std::int64_t optimizer = optimizerElements(sizes);
        const bool offload = m_options.offloadOptimizer;
        const std::int64_t padded = checkedMultiply(sizes.shard, m_ranks);
        const std::int64_t paddedTrainable = checkedMultiply(sizes.trainableShard, m_ranks);
        const auto add = [&](const BufferSpec& spec, Bytes bytes) { return m_sizes.addBuffer(spec, bytes, index); };
        sizes.parameters = add(kParameters, bytesOf(m_options.stage >= 3 ? sizes.shard : sizes.all, m_compute));
        sizes.master =
            add(offload ? kHostMaster : kMaster, mixed() || offload ? bytesOf(optimizer, DType::Fp32) : Bytes(0));
        sizes.moments = add(offload ? kHostMoments : kMoments, stateBytes(optimizer));
        sizes.gathered = add(kGathered, bytesOf(padded, m_compute));
        sizes.gradientShard = add(kGradientShard, bytesOf(sizes.trainableShard, m_compute));
        for (const LeafModule& module : m_activations.modules(index)) {
            const Bytes gradient = bytesOf(module.trainable, m_compute);
            sizes.gradients.push_back(module.trainable == 0 ? -1 : add(kGradient, gradient));
            sizes.accumulations.push_back(m_sizes.addPayload(
                {"gradient added to an earlier one", "3 c x numel", kPaper, gradient * 3, m_compute}));
        }
        sizes.addShard = m_sizes.addPayload({"gradient shard added to an earlier one", "3 c x P_l / N", kPaper,
                                             bytesOf(sizes.trainableShard, m_compute) * 3, m_compute});
        sizes.gather = m_sizes.addPayload({"parameters", "c x P_l", kPaper, bytesOf(padded, m_compute), m_compute});
        sizes.reduce =
            m_sizes.addPayload({"gradients", "c x P_l", kPaper, bytesOf(paddedTrainable, m_compute), m_compute});
        sizes.toHost = m_sizes.addPayload(
            {"gradients to the host", "c x P_l / N", kPaper, bytesOf(optimizer, m_compute), m_compute});
        sizes.toDevice = m_sizes.addPayload(
            {"parameters to the GPU", "c x P_l / N", kPaper, bytesOf(optimizer, m_compute), m_compute});
    }

    class Emission final : public StageObserver {
    public:
        explicit Emission(const NativeRules& rules)
            : m_rules(rules), m_builder(rules.m_sizes), m_walk(rules.m_activations),
              m_layers(rules.m_model.layers.size())
        {
            for (std::size_t layer = 0; layer < m_layers.size(); ++layer)
                m_layers[layer].gradients.assign(at(static_cast<int>(layer)).gradients.size(), -1);
        }

        Schedule run()
        {
            m_builder.beginSegment("initialisation");
            m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
            for (std::size_t layer = 0; layer < m_layers.size(); ++layer) {
                const TypeSizes& sizes = at(static_cast<int>(layer));
                m_builder.allocate(sizes.parameters);
                m_builder.allocate(sizes.master);
                m_builder.allocate(sizes.moments);
            }
            m_walk.carryOver(m_builder);
            for (const MicroStep& step : microSteps(m_rules.m_training.gradientAccumulation)) {
                m_builder.beginSegment(step.name, step.repeat);
                microStep(step);
            }
            m_builder.beginSegment("optimizer step");
            optimizerStep();
            return m_builder.finish();
        }

        void beforeStage(Pass pass, int layer, int) override
        {
            if (!shardsParameters())
                return;
            gather(layer, pass == Pass::Forward ? Phase::Forward : Phase::Backward);
            awaitGather(layer, pass == Pass::Forward ? Phase::Forward : Phase::Backward);
            const int next = pass == Pass::Forward ? layer + 1 : layer - 1;
            const bool inside = next >= 0 && next < static_cast<int>(m_layers.size());
            if (m_rules.m_options.prefetch && inside && layer == m_layer &&
                !(pass == Pass::Backward && next == 0 && tiedHead()))
                gather(next, pass == Pass::Forward ? Phase::Forward : Phase::Backward);
        }

        void afterStage(Pass pass, int layer, int module) override
        {
            if (pass != Pass::Backward)
                return;
            const BufferClassId gradientClass = at(layer).gradients[static_cast<std::size_t>(module)];
            if (gradientClass < 0)
                return;
            BufferId& gradient = state(layer).gradients[static_cast<std::size_t>(module)];
            const BufferId fresh = m_builder.allocate(gradientClass);
            if (gradient < 0) {
                gradient = fresh;
                return;
            }
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, layer);
            m_builder.move(at(layer).accumulations[static_cast<std::size_t>(module)]);
            m_builder.free(fresh); // accumulated in place
        }

    private:
        struct LayerState {
            BufferId gathered = -1;
            OpId arriving = -1; // its gather, until the compute stream waits for it
            BufferId gradientShard = -1;
            std::vector<BufferId> gradients;
        };

        const TypeSizes& at(int layer) const
        {
            return m_rules.m_types[static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)])];
        }
        LayerState& state(int layer) { return m_layers[static_cast<std::size_t>(layer)]; }
        int stage() const { return m_rules.m_options.stage; }
        bool shardsParameters() const { return stage() >= 3; }
        bool tiedHead() const { return m_rules.m_model.architecture.tiedEmbedding; }
        /// With a tied head the embedding is needed until the head's backward is done.
        bool heldForTying(int layer) const { return tiedHead() && layer == 0; }

        void gather(int layer, Phase phase)
        {
            if (state(layer).gathered >= 0 || at(layer).all == 0)
                return;
            const OpId gathering = m_builder.op(OpKind::AllGather, Stream::AllGather, phase, layer);
            state(layer).gathered = m_builder.allocate(at(layer).gathered);
            state(layer).arriving = gathering;
            m_builder.send(at(layer).gather, m_rules.m_world);
            m_builder.wait(m_lastRelease); // it takes the memory that was let go of
            takeTurn(gathering);
        }

        void awaitGather(int layer, Phase phase)
        {
            if (state(layer).arriving < 0)
                return;
            m_builder.op(OpKind::Release, Stream::Compute, phase, layer);
            m_builder.wait(std::exchange(state(layer).arriving, -1));
        }

        /// There is one communicator: collectives run in the order of issue.
        void takeTurn(OpId collective)
        {
            m_builder.wait(m_lastCollective);
            m_lastCollective = collective;
        }

        void release(int layer, Phase phase)
        {
            if (state(layer).gathered < 0)
                return;
            m_lastRelease = m_builder.op(OpKind::Release, Stream::Compute, phase, layer);
            m_builder.free(state(layer).gathered);
            state(layer).gathered = -1;
        }

        void reduce(int layer, const MicroStep& step)
        {
            const TypeSizes& sizes = at(layer);
            if (sizes.trainable == 0 || (stage() <= 1 && !step.last))
                return;
            const OpId made = m_builder.lastOp();
            m_lastReduced = m_builder.op(stage() == 0 ? OpKind::AllReduce : OpKind::ReduceScatter, Stream::Reduce,
                                         Phase::Backward, layer);
            m_builder.send(sizes.reduce, m_rules.m_world);
            m_builder.wait(made);
            takeTurn(m_lastReduced);
            if (stage() < 2)
                return; // stage 1 keeps whole gradients until the step and reduces them in place
            const bool addsUp = state(layer).gradientShard >= 0;
            if (!addsUp)
                state(layer).gradientShard = m_builder.allocate(sizes.gradientShard);
            freeGradients(layer);
            if (!addsUp)
                return;
            m_lastReduced = m_builder.op(OpKind::Copy, Stream::Reduce, Phase::Backward, layer);
            m_builder.move(sizes.addShard);
        }

        void freeGradients(int layer)
        {
            for (BufferId& gradient : state(layer).gradients)
                if (gradient >= 0) {
                    m_builder.free(gradient);
                    gradient = -1;
                }
        }

        void microStep(const MicroStep& step)
        {
            const int layers = static_cast<int>(m_layers.size());
            m_walk.beginMicroStep(m_builder);
            m_lastRelease = m_builder.lastOp();
            m_lastCollective = -1;
            for (m_layer = 0; m_layer < layers; ++m_layer) {
                m_walk.forward(m_builder, m_layer, *this);
                if (m_layer + 1 < layers && !heldForTying(m_layer)) // the last layer is needed again at once
                    release(m_layer, Phase::Forward);
            }
            m_layer = -1;
            m_walk.loss(m_builder);
            for (m_layer = layers - 1; m_layer >= 0; --m_layer) {
                m_walk.backward(m_builder, m_layer, *this);
                release(m_layer, Phase::Backward);
                reduce(m_layer, step);
            }
            m_builder.op(OpKind::Release, Stream::Compute, Phase::Backward);
            m_builder.wait(std::exchange(m_lastReduced, -1));
            m_walk.endMicroStep(m_builder);
        }

        void optimizerStep()
        {
            const bool offload = m_rules.m_options.offloadOptimizer;
            const auto move = [&](OpKind kind, Stream stream, PayloadId TypeSizes::*payload) {
                for (std::size_t layer = 0; layer < m_layers.size(); ++layer) {
                    m_builder.op(kind, stream, Phase::Optimizer, static_cast<std::int32_t>(layer));
                    m_builder.move(at(static_cast<int>(layer)).*payload);
                }
                return m_builder.lastOp();
            };
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_clip);
            const OpId clipped = m_builder.lastOp();
            OpId down = -1;
            if (offload) {
                m_builder.op(OpKind::Release, Stream::DeviceToHost, Phase::Optimizer);
                m_builder.wait(clipped);
                down = move(OpKind::CopyToHost, Stream::DeviceToHost, &TypeSizes::toHost);
            }
            const OpId stepped = m_builder.op(offload ? OpKind::HostOptimizerStep : OpKind::OptimizerStep,
                                              offload ? Stream::Host : Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_step);
            m_builder.blockHost(down); // the host steps itself
            OpId up = -1;
            if (offload) {
                m_builder.op(OpKind::Release, Stream::HostToDevice, Phase::Optimizer);
                m_builder.blockHost(stepped);
                up = move(OpKind::CopyToDevice, Stream::HostToDevice, &TypeSizes::toDevice);
            }
            m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
            m_builder.wait(up);
            for (std::size_t layer = 0; layer < m_layers.size(); ++layer) {
                freeGradients(static_cast<int>(layer));
                if (m_layers[layer].gradientShard >= 0)
                    m_builder.free(m_layers[layer].gradientShard);
            }
            if (stage() == 0 || stage() >= 3)
                return;
            const OpId updated = m_builder.lastOp();
            for (std::size_t layer = 0; layer < m_layers.size();
                 ++layer) { // updated shards back to everybody, in place
                m_builder.op(OpKind::AllGather, Stream::AllGather, Phase::AfterStep, static_cast<std::int32_t>(layer));
                m_builder.send(at(static_cast<int>(layer)).reduce, m_rules.m_world);
                m_builder.wait(updated);
            }
            const OpId everywhere = m_builder.lastOp();
            m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
            m_builder.wait(everywhere);
        }

        const NativeRules& m_rules;
        ScheduleBuilder m_builder;
        ActivationWalk m_walk;
        std::vector<LayerState> m_layers;
        int m_layer = -1;
        OpId m_lastRelease = -1;
        OpId m_lastCollective = -1;
        OpId m_lastReduced = -1;
    };

    const Model& m_model;
    NativeOptions m_options;
    DType m_compute;
    ActivationModel m_activations;
    Training m_training;
    const Cluster* m_cluster = nullptr;
    std::int64_t m_ranks = 1;
    GroupId m_world = -1;
    std::vector<TypeSizes> m_types; // by layer type
    PayloadId m_clip = -1, m_step = -1;
};

} // namespace

std::vector<std::string> nativeRefusals(const PlanInput& input)
{
    const auto& options = std::get<NativeOptions>(input.strategy.options);
    if (options.stage < 0 || options.stage > 3)
        return {fmt::format("stage {} does not exist: native has stages 0 to 3", options.stage)};
    if (input.training.lora && input.training.lora->baseDtype)
        return {"shardrun does not train on a quantised base (lora base_dtype)"};
    return {};
}

std::unique_ptr<FrameworkRules> makeNativeRules(const PlanInput& input)
{
    return std::make_unique<NativeRules>(input);
}

} // namespace shardwright
