// Stage 0 without BF16_Optimizer: fp32 training steps the module's own parameters; fp16 goes through FP16_Optimizer
// (runtime/fp16/fused_optimizer.py, "fused"). Gradients are all-reduced at the boundary (engine
// buffered_allreduce_fallback), unless a 1-bit optimizer (runtime/fp16/onebit) sends its own compressed momentum.

#include <algorithm>

#include "planner/frameworks/deepspeed/deepspeed_rules.hpp"
#include "planner/frameworks/deepspeed/recording.hpp"
#include "planner/frameworks/deepspeed/sign_exchange.hpp"
#include "planner/frameworks/deepspeed/tensor_order.hpp"
#include "planner/frameworks/optimizer_rules.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr BufferSpec kParameters{
    "parameters", "d P", "engine _configure_distributed_model", C::Parameters, Place::Gpu, S::Compute, L::Persistent};
constexpr BufferSpec kMaster{"fp32 master parameters",
                             "4 B x P",
                             "fused fp32_groups_flat",
                             C::MasterParameters,
                             Place::Gpu,
                             S::Compute,
                             L::Persistent};
constexpr BufferSpec kMoments{"optimizer states", "moments x 4 B x P", "ops/adam/fused_adam.py", C::OptimizerStates,
                              Place::Gpu,         S::Compute,          L::FromFirstStep};
constexpr BufferSpec kLocalSteps{"momentum gathered over local steps",
                                 "4 B x P",
                                 "runtime/fp16/onebit/zoadam.py comm_buffer",
                                 C::OptimizerStates,
                                 Place::Gpu,
                                 S::Compute,
                                 L::FromFirstStep};
constexpr BufferSpec kModule{"module before it is flattened", "d P", "fused __init__", C::Temporaries};
constexpr BufferSpec kGradient{"gradient of a module", "d x numel", "torch autograd", C::Gradients};
constexpr BufferSpec kBucket{"gradients flattened for the all-reduce", "d x elements of the bucket",
                             "engine allreduce_bucket", C::CommunicationBuffers};
constexpr BufferSpec kBucketCast{"bucket in the communication dtype", "w x elements of the bucket",
                                 "engine allreduce_bucket", C::CommunicationBuffers};
constexpr BufferSpec kGradientCasts{"fp32 copies of all gradients", "4 B x P", "fused step: p.grad.to(fp32)",
                                    C::Temporaries};
constexpr BufferSpec kGradientFlat{"flattened fp32 gradients", "4 B x P", "fused step: _flatten_dense_tensors",
                                   C::Temporaries};
constexpr BufferSpec kForeach{"temporaries of the foreach optimizer", "4 B x P",
                              "torch/optim/adamw.py _multi_tensor_adamw", C::Temporaries};

class UnshardedRules final : public DeepSpeedRules {
public:
    explicit UnshardedRules(const PlanInput& input)
        : DeepSpeedRules(input), m_order(m_activations),
          m_signs(m_order, fp16() || m_training.optimizer == Optimizer::OneBitLamb)
    {
        // engine allreduce_no_retain: a bucket goes out once it holds more than reduce_bucket_size elements
        std::int64_t elements = 0;
        const auto close = [&](std::size_t end) {
            m_buckets.push_back(std::exchange(elements, 0));
            m_bucketEnds.push_back(end);
        };
        for (std::size_t i = 0; i < m_order.tensors().size(); ++i) {
            elements = checkedAdd(elements, m_order.tensors()[i].numel);
            if (elements > m_options.reduceBucketSize)
                close(i + 1);
        }
        if (elements > 0)
            close(m_order.tensors().size());
        resize(input);
    }

    void resize(const PlanInput& input) override
    {
        take(input);
        const std::int64_t elements = m_order.elements();
        m_parameters = m_sizes.addBuffer(kParameters, bytesOf(elements, m_dtypes.model) +
                                                          bytesOf(frozenParameters(), m_dtypes.frozen));
        m_master = m_sizes.addBuffer(kMaster, fp16() ? bytesOf(elements, DType::Fp32) : Bytes(0));
        m_moments = m_sizes.addBuffer(kMoments, stateBytes(elements));
        if (compressed())
            m_signs.define(m_sizes, m_ranks, m_world, m_dtypes.model, executes());
        m_localSteps = m_sizes.addBuffer(
            kLocalSteps, m_training.optimizer == Optimizer::ZeroOneAdam ? bytesOf(elements, DType::Fp32) : Bytes(0));
        m_module = m_sizes.addBuffer(kModule, fp16() ? bytesOf(elements, m_dtypes.model) : Bytes(0));
        m_gradients.clear();
        for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
            m_gradients.emplace_back();
            for (const LeafModule& module : m_activations.modules(static_cast<int>(type)))
                m_gradients.back().push_back(
                    module.trainable == 0 ? -1
                                          : m_sizes.addBuffer(kGradient, bytesOf(module.trainable, m_dtypes.model),
                                                              static_cast<int>(type)));
        }
        m_flatten.clear();
        m_casts.clear();
        m_reduce.clear();
        for (const std::int64_t bucket : m_buckets) {
            m_flatten.push_back(m_sizes.addBuffer(kBucket, bytesOf(bucket, m_dtypes.model)));
            m_casts.push_back(m_sizes.addBuffer(
                kBucketCast, m_dtypes.wire == m_dtypes.model ? Bytes(0) : bytesOf(bucket, m_dtypes.wire)));
            m_reduce.push_back(m_sizes.addPayload({"gradient bucket", "w x elements", "engine allreduce_bucket",
                                                   bytesOf(bucket, m_dtypes.wire), m_dtypes.wire}));
        }
        const Bytes wide = bytesOf(elements, DType::Fp32);
        m_gradientCasts = m_sizes.addBuffer(kGradientCasts, fp16() ? wide : Bytes(0));
        m_gradientFlat = m_sizes.addBuffer(kGradientFlat, fp16() ? wide : Bytes(0));
        m_foreach = m_sizes.addBuffer(kForeach, foreachTemporaries(m_training) ? wide : Bytes(0));
        defineCopies(elements, wide);
    }

    /// One rank exchanges no signs.
    std::string structureKey() const override { return commonKey() + (exchanges() ? " signs" : ""); }

    ModelStates modelStates() const override
    {
        const std::int64_t elements = m_order.elements();
        ModelStates states;
        states.parameters = bytesOf(elements, m_dtypes.model) + bytesOf(frozenParameters(), m_dtypes.frozen);
        states.gradients = bytesOf(elements, m_dtypes.model);
        states.masterParameters = fp16() ? bytesOf(elements, DType::Fp32) : Bytes(0);
        states.optimizerStates = stateBytes(elements) + (compressed() ? m_signs.errorBytes() : Bytes(0));
        return states;
    }

    std::vector<Note> assumptions() const override
    {
        std::vector<Note> notes = DeepSpeedRules::assumptions();
        if (!exchanges())
            return notes;
        notes.push_back({"the step is one of those after the optimizer's warm-up (freeze_step, 0/1 Adam: "
                         "var_freeze_step; 100000 where nothing is said), in which gradients go round whole",
                         Provenance::Vendor, "runtime/fp16/onebit/adam.py, lamb.py, zoadam.py"});
        if (m_training.optimizer == Optimizer::ZeroOneAdam)
            notes.push_back({"the step is one that exchanges: 0/1 Adam's local steps send nothing. Their interval "
                             "doubles every local_step_scaler (32678) steps up to local_step_clipper (16), so that "
                             "late in a run one step of 16 exchanges",
                             Provenance::Vendor, "runtime/fp16/onebit/zoadam.py step"});
        return notes;
    }

    Schedule emit() const override { return Emission(*this, false).run(); }
    Schedule emitToRun() const override { return Emission(*this, compressed()).run(); }

protected:
    std::int64_t steppedElements() const override { return m_order.elements(); }

private:
    bool fp16() const { return m_wrapper == OptimizerWrapper::Fp16; }
    bool compressed() const { return isOneBit(m_training.optimizer); }
    bool exchanges() const { return compressed() && m_ranks > 1; }

    void defineCopies(std::int64_t elements, Bytes wide)
    {
        const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
            return m_sizes.addPayload({name, formula, source, moved, m_dtypes.model});
        };
        m_accumulations.clear();
        for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
            m_accumulations.emplace_back();
            for (const LeafModule& module : m_activations.modules(static_cast<int>(type)))
                m_accumulations.back().push_back(add("gradient added to an earlier one", "3 d x numel",
                                                     "torch AccumulateGrad",
                                                     bytesOf(module.trainable, m_dtypes.model) * 3));
        }
        m_bucketCopies.clear();
        for (const std::int64_t bucket : m_buckets) {
            const Bytes narrow = bytesOf(bucket, m_dtypes.model);
            const Bytes wire = bytesOf(bucket, m_dtypes.wire);
            const Bytes casting = m_dtypes.wire == m_dtypes.model ? Bytes(0) : (narrow + wire) * 2;
            m_bucketCopies.push_back(add("bucket flattened, divided and copied back", "6 d x elements",
                                         "engine allreduce_and_copy", narrow * 4 + wire * 2 + casting));
        }
        const Bytes narrow = bytesOf(elements, m_dtypes.model);
        // Checked for overflow, cast, flattened, unscaled with the clipping, whose norm is a pass more.
        m_prepare = add("gradients cast, flattened and unscaled", "(d + 4) x P + 24 B x P",
                        "fused step: _flatten_dense_tensors, unscale_and_clip_grads",
                        fp16() ? narrow * 2 + wide * 6 : clippingBytes(m_training, narrow));
        const DType stepped = fp16() ? DType::Fp32 : m_dtypes.model;
        const Bytes narrowing = fp16() ? narrow + wide : Bytes(0);
        // The momentum alone, where it is sent: runtime/fp16/onebit/adam.py mul_(m), add_(m, g); after the exchange
        // sqrt(v), add_(eps), div, and the update of the parameters; the second moment is frozen.
        m_step = add("optimizer step", "accesses x P", "ops/adam; runtime/fp16/onebit",
                     compressed() ? wide * 5
                                  : optimizerStepBytes(m_training.optimizer, torchOptimizerForm(m_training), elements,
                                                       {stepped, stepped, DType::Fp32}) +
                                        narrowing);
        m_update =
            add("update after the exchange", "11 x 4 B x P", "runtime/fp16/onebit/adam.py step", wide * 11 + narrowing);
    }

    class Emission final : public StageObserver {
    public:
        /// `warmsUp`: with a stand-in for the steps that the optimizer begins with.
        Emission(const UnshardedRules& rules, bool warmsUp)
            : m_rules(rules), m_builder(rules.m_sizes, rules.recording()), m_record(m_builder),
              m_walk(rules.m_activations), m_signs(rules.m_signs, m_builder, m_record), m_warmsUp(warmsUp)
        {
            if (m_record.records())
                m_all = wholeLayout(tensorsOf(rules.m_order));
            for (const int type : rules.m_model.layers)
                m_held.emplace_back(rules.m_gradients[static_cast<std::size_t>(type)].size(), -1);
        }

        Schedule run()
        {
            m_builder.beginSegment("initialisation");
            m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
            const DType model = m_rules.m_dtypes.model;
            const BufferId module = m_record.allocate(m_rules.m_module, Quantity::Parameters, model, m_all);
            m_parameters = m_record.allocate(m_rules.m_parameters, Quantity::Parameters, model, m_all);
            m_master = m_record.allocate(m_rules.m_master, Quantity::Parameters, DType::Fp32, m_all);
            m_moments = m_record.allocate(m_rules.m_moments, Quantity::Moments, m_rules.m_dtypes.states, m_all);
            if (m_rules.compressed())
                m_signs.allocateErrors();
            m_record.allocateScratch(m_rules.m_localSteps);
            m_record.initialize({module, m_parameters, m_moments});
            m_record.move({m_parameters}, {m_master});
            m_builder.free(module);
            m_walk.carryOver(m_builder);
            if (m_rules.pipelined())
                emitPipeline(m_builder, m_rules.m_activations, *m_rules.m_slice, m_rules.pipeline(), *this,
                             {[](const MicroStep&) {}, [this](const MicroStep& step) { endBackward(step); }});
            else
                for (const MicroStep& step : microSteps(m_rules.m_training.gradientAccumulation)) {
                    m_builder.beginSegment(step.name, step.repeat);
                    microStep(step);
                }
            if (m_warmsUp) {
                m_builder.beginSegment("warm-up optimizer step", 0);
                const std::vector<std::vector<BufferId>> held = m_held;
                warmUpStep();
                m_held = held;
            }
            m_builder.beginSegment("optimizer step");
            optimizerStep();
            return m_builder.finish();
        }

        BufferId gradientBuffer(int layer, int module) override
        {
            m_fresh = makeGradient(layer, module);
            return m_fresh;
        }

        void afterStage(Pass pass, int layer, int module) override
        {
            if (pass != Pass::Backward)
                return;
            const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
            if (m_fresh < 0)
                m_fresh = makeGradient(layer, module);
            if (m_fresh < 0)
                return;
            BufferId& held = m_held[static_cast<std::size_t>(layer)][static_cast<std::size_t>(module)];
            const BufferId fresh = std::exchange(m_fresh, -1);
            if (held < 0) {
                held = fresh;
                return;
            }
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward, layer);
            m_builder.move(m_rules.m_accumulations[type][static_cast<std::size_t>(module)]);
            m_record.add({fresh}, {held});
            m_builder.free(fresh); // added in place
        }

    private:
        BufferId makeGradient(int layer, int module)
        {
            const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
            const BufferClassId gradient = m_rules.m_gradients[type][static_cast<std::size_t>(module)];
            if (gradient < 0 || !m_record.records())
                return gradient < 0 ? -1 : m_builder.allocate(gradient);
            return m_record.allocate(gradient, Quantity::Gradients, m_rules.m_dtypes.model,
                                     wholeLayout(tensorsOf(m_rules.m_order, layer, module)));
        }

        std::vector<BufferId> heldGradients() const
        {
            std::vector<BufferId> gradients;
            for (const std::vector<BufferId>& layer : m_held)
                for (const BufferId held : layer)
                    if (held >= 0)
                        gradients.push_back(held);
            return gradients;
        }

        void reduce(std::size_t bucket)
        {
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward);
            m_builder.move(m_rules.m_bucketCopies[bucket]);
            m_builder.op(OpKind::AllReduce, Stream::Compute, Phase::Backward);
            const std::size_t first = bucket == 0 ? 0 : m_rules.m_bucketEnds[bucket - 1];
            const Layout layout =
                m_record.records()
                    ? wholeLayout(tensorsOf(m_rules.m_order.tensors(), first, m_rules.m_bucketEnds[bucket]))
                    : Layout{};
            const BufferId flat =
                m_record.allocate(m_rules.m_flatten[bucket], Quantity::Gradients, m_rules.m_dtypes.model, layout);
            const BufferId cast =
                m_record.allocate(m_rules.m_casts[bucket], Quantity::Gradients, m_rules.m_dtypes.wire, layout);
            m_builder.send(m_rules.m_reduce[bucket], m_rules.m_world);
            const std::vector<BufferId> gradients = heldGradients();
            const BufferId sent = m_record.exists(m_rules.m_casts[bucket]) ? cast : flat;
            m_record.move(gradients, {flat});
            m_record.move({flat}, {cast});
            m_record.collective(Verb::AllReduce, m_rules.m_world, {}, {sent});
            m_record.move({cast}, {flat});
            m_record.move({flat}, gradients);
            m_builder.free(cast);
            m_builder.free(flat);
        }

        void microStep(const MicroStep& step)
        {
            const int layers = static_cast<int>(m_rules.m_model.layers.size());
            m_walk.beginMicroStep(m_builder);
            for (int layer = 0; layer < layers; ++layer)
                m_walk.forward(m_builder, layer, *this);
            m_walk.loss(m_builder);
            for (int layer = layers - 1; layer >= 0; --layer)
                m_walk.backward(m_builder, layer, *this);
            endBackward(step);
            m_walk.endMicroStep(m_builder);
        }

        void endBackward(const MicroStep& step)
        {
            if (step.last && !m_rules.compressed())
                for (std::size_t bucket = 0; bucket < m_rules.m_buckets.size(); ++bucket)
                    reduce(bucket);
        }

        void optimizerStep()
        {
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_prepare);
            const BufferId casts = m_record.allocateScratch(m_rules.m_gradientCasts);
            const BufferId flat = m_record.allocateScratch(m_rules.m_gradientFlat);
            const std::vector<BufferId> gradients = heldGradients();
            if (m_rules.m_training.gradientClipping)
                m_record.clip(-1, gradients); // every rank has all of them
            m_builder.free(casts);
            if (m_rules.fp16())
                dropGradients();
            const OpId prepared = m_builder.lastOp();
            m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_step);
            if (m_rules.fp16())
                m_builder.blockHost(prepared); // the overflow is read on the host: item()
            m_record.update(gradients,
                            m_rules.compressed() ? std::vector{m_moments} : std::vector{m_parameters, m_moments});
            const BufferId foreach = m_record.allocateScratch(m_rules.m_foreach);
            m_builder.free(foreach);
            if (m_rules.exchanges())
                m_signs.exchange(m_moments);
            else if (m_rules.compressed())
                m_signs.keepErrors();
            if (m_rules.compressed()) {
                m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
                m_builder.move(m_rules.m_update);
                m_record.update({}, {m_parameters, m_moments});
            }
            m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
            m_builder.free(flat);
            dropGradients();
        }

        /// Until freeze_step the gradients are all-reduced (engine enable_backward_allreduce) and both moments follow.
        void warmUpStep()
        {
            for (std::size_t bucket = 0; bucket < m_rules.m_buckets.size(); ++bucket)
                reduce(bucket);
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_prepare);
            const std::vector<BufferId> gradients = heldGradients();
            if (m_rules.m_training.gradientClipping)
                m_record.clip(-1, gradients);
            m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_step);
            m_record.update(gradients, {m_parameters, m_moments});
            m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
            dropGradients();
        }

        void dropGradients()
        {
            for (std::vector<BufferId>& layer : m_held)
                for (BufferId& held : layer) {
                    if (held >= 0)
                        m_builder.free(held);
                    held = -1;
                }
        }

        const UnshardedRules& m_rules;
        ScheduleBuilder m_builder;
        ContentRecorder m_record;
        ActivationWalk m_walk;
        SignExchangeEmission m_signs;
        bool m_warmsUp;
        std::vector<std::vector<BufferId>> m_held;
        Layout m_all;
        BufferId m_parameters = -1, m_master = -1, m_moments = -1;
        BufferId m_fresh = -1; // gradient of the module whose backward runs
    };

    FlatOrder m_order;
    SignExchange m_signs;
    std::vector<std::int64_t> m_buckets;
    std::vector<std::size_t> m_bucketEnds; // one behind each one's last tensor
    BufferClassId m_parameters = -1, m_master = -1, m_moments = -1, m_localSteps = -1, m_module = -1;
    BufferClassId m_gradientCasts = -1, m_gradientFlat = -1, m_foreach = -1;
    std::vector<std::vector<BufferClassId>> m_gradients; // by layer type and module
    std::vector<BufferClassId> m_flatten;                // by bucket
    std::vector<BufferClassId> m_casts;
    std::vector<PayloadId> m_reduce;
    std::vector<PayloadId> m_bucketCopies;
    std::vector<std::vector<PayloadId>> m_accumulations; // by layer type and module
    PayloadId m_prepare = -1, m_step = -1, m_update = -1;
};

} // namespace

std::unique_ptr<FrameworkRules> makeUnshardedRules(const PlanInput& input)
{
    return std::make_unique<UnshardedRules>(input);
}

} // namespace shardwright
