"""The papers' words about each numbered equation, with the hypotheses that they state, by section."""

QUOTES = {
    "v1 (1)": "The cornerstone of our model is a PDE-inspired formulation that captures the essence of information flow in "
    "Transformers: ∂u/∂t = D∇²u + αA(u) + R(u, θ, t, x). (v1 §2.2.1)",
    "v1 (2)": "A(u) is the self-attention mechanism, defined as A(u) = Softmax(Q(u)K(u)ᵀ/√d_k) V(u), where Q(u) = W_Q u, K(u) "
    "= W_K u, and V(u) = W_V u are the query, key, and value projections, respectively. (v1 §2.2.1)",
    "v1 (3)": "To capture these dynamics in the learning process of Transformers, we introduce the following equation: ∂θ/∂t "
    "= −∇_θ L(θ) + λθ − β∇_θ I(X; T_θ(X)), where … λθ represents the L2 regularization term, commonly used in Transformer "
    "training. (v1 §2.2.2)",
    "v1 (4)": "∂u_l/∂t = D_l∇²u_l + α_l A_l(u_l) + R_l(u_l, θ_l, t, x) + C_{l−1,l}(u_{l−1}) − C_{l,l+1}(u_l), where … "
    "C_{l−1,l}(u_{l−1}) and C_{l,l+1}(u_l) are inter-layer communication operators, modeling residual connections and layer "
    "normalization effects. (v1 §2.2.3)",
    "v1 (5)": "∂u/∂t = D∇²u + αA(u) + R(u, θ, t, x) … This equation describes how information flows and transforms within a "
    "Transformer. Here, t can be understood as the depth of the network, and x as the position in the sequence. (v1 A.1)",
    "v1 (6)": "u(x, 0) = u₀(x) (initial condition) … In Transformer models like BERT, the initial condition corresponds to "
    "the input embeddings. (v1 A.1)",
    "v1 (7)": "u(0, t) = u(L, t) = 0 (boundary condition, L being the sequence length). In Transformer models like BERT, the "
    "initial condition corresponds to the input embeddings, while the boundary conditions can be interpreted as the start and "
    "end tokens of the sequence. (v1 A.1)",
    "v1 (8)": "The diffusion term D∇²u describes the spatial diffusion of information: D∇²u = D Σ_{i=1}^d ∂²u/∂x_i², where D "
    "is the diffusion coefficient matrix controlling diffusion rates in different dimensions. (v1 A.1.1)",
    "v1 (9)": "The improved multi-head self-attention mechanism A(u) is defined as: A(u) = Concat(head_1, …, head_h)W^O. (v1 "
    "A.1.2)",
    "v1 (10)": "each attention head head_i is computed as: head_i = Softmax(Q_i K_iᵀ/√d_k) V_i. (v1 A.1.2)",
    "v1 (11)": "Q_i = uW_i^Q, K_i = uW_i^K, V_i = uW_i^V. Here, W_i^Q, W_i^K, W_i^V and W^O are learnable parameter matrices. "
    "(v1 A.1.2)",
    "v1 (12)": "The nonlinear residual term R(u, θ, t, x) includes activation functions and external inputs: R(u, θ, t, x) = "
    "FFN(u) + g(x, t). (v1 A.1.3)",
    "v1 (13)": "FFN is a feedforward neural network defined as: FFN(u) = max(0, uW₁ + b₁)W₂ + b₂. (v1 A.1.3)",
    "v1 (14)": "The improved information bottleneck theory equation is: ∂θ/∂t = −η∇_θ L(θ) − λθ − β∇_θ Ĩ(X; T_θ(X)). Here, η "
    "is the learning rate, λ is the regularization coefficient, and β controls the degree of information compression. This "
    "equation describes how model parameters evolve over time to balance task performance and information compression. (v1 "
    "A.2)",
    "v1 (15)": "The loss function L(θ) reflects the model's performance on a specific task: L(θ) = E_{(x,y)∼D}[ℓ(f_θ(x), y)]. "
    "(v1 A.2.1)",
    "v1 (16)": "Since exact computation of mutual information I(X; T_θ(X)) is often infeasible, we use a variational lower "
    "bound Ĩ(X; T_θ(X)): Ĩ(X; T_θ(X)) = E_{x,t∼p(x,t)}[log q_φ(t|x)] − E_{x∼p(x),t∼p(t)}[log q_φ(t)], where q_φ(t|x) is a "
    "parameterized approximate posterior distribution. (v1 A.2.2)",
    "v1 (17)": "The improved multi-scale model is: ∂u_l/∂t = D_l∇²u_l + α_l A_l(u_l) + R_l(u_l, θ_l, t, x) + "
    "C_{l−1,l}(u_{l−1}) − C_{l,l+1}(u_l). (v1 A.3)",
    "v1 (18)": "The inter-layer information exchange operators are defined as: C_{l−1,l}(u_{l−1}) = W_{l−1,l} u_{l−1} + "
    "b_{l−1,l}. (v1 A.3.1)",
    "v1 (19)": "C_{l,l+1}(u_l) = W_{l,l+1} u_l + b_{l,l+1}. In Transformers, this corresponds to residual connections and "
    "layer normalization, which allow information to propagate directly between different layers. (v1 A.3.1)",
    "v1 (20)": "To discretize the continuous model with time step Δt and spatial step Δx: (u_l^{n+1} − u_l^n)/Δt = D_l "
    "(u_l^n(x + Δx) − 2u_l^n(x) + u_l^n(x − Δx))/(Δx)² + α_l A_l(u_l^n) + R_l(u_l^n, θ_l^n, nΔt, x) + C_{l−1,l}(u_{l−1}^n) − "
    "C_{l,l+1}(u_l^n). (v1 A.3.2)",
    "v1 (21)": "Theorem 2 (Stability Condition): For the discretized model, the numerical method is stable if: 2D_lΔt/(Δx)² + "
    "α_lΔt‖W^O‖₂ ≤ 1, where ‖W^O‖₂ is the spectral norm of matrix W^O. This condition ensures that the numerical solution "
    "does not grow unboundedly over time. (v1 A.5)",
    "v1 (22)": "Considering the gradient propagation in the network: ∂L/∂u_l = ∂L/∂u_{l+1} · ∂u_{l+1}/∂u_l. (v1 A.6)",
    "v1 (23)": "where: ∂u_{l+1}/∂u_l = I + Δt(D_l∇² + α_l ∂A_l/∂u_l + ∂R_l/∂u_l − ∂C_{l,l+1}/∂u_l). This analysis reveals how "
    "gradients flow through the network. (v1 A.6)",
    "v1 (24)": "The error between the theoretical model and the actual Transformer primarily arises from: 1. Continuous "
    "approximation of PDE 2. Simplification of the attention mechanism 3. Discretization error. The error upper bound can be "
    "expressed as: ‖u − û‖₂ ≤ C₁(Δt)^p + C₂(Δx)^q + C₃ε_att, where p, q are the orders of the discretization methods, and "
    "ε_att is the error from the simplified attention mechanism. (v1 A.7)",
    "v2 (1)": "the flow of information is abstracted as a continuous information field u(x, t), whose evolution is governed "
    "by a unified master equation: ∂u/∂t = A[u] + R[u] + D[u] + S[u]. (v2 §1)",
    "v2 (2)": "The field is initialized at t = 0 by the input embeddings: u(x, 0) = E(x) + P(x), where E(x) and P(x) are the "
    "continuous analogues of the token and positional embeddings, respectively. (v2 §3.1)",
    "v2 (3)": "Let {H^(ℓ)}_{ℓ=0}^L be the sequence of hidden states generated by an L-layer Transformer. Assuming the family "
    "of discrete operators {F_ℓ} satisfies uniform regularity conditions (e.g., Lipschitz continuity and smoothness with "
    "respect to ℓ, see Appendix A.1), then as the number of layers L → ∞ (and thus Δt → 0), the discrete trajectory, when "
    "properly interpolated, converges uniformly to the solution u(x, t) of the continuous system: ∂u/∂t = F(u, t). (v2 §3.1, "
    "Thm 3.2)",
    "v2 (4)": "We posit that the complex dynamics within a Transformer can be described by a unified PDE, which we term the "
    "master equation: ∂u/∂t = A(u) + R(u) + D(u) + S(u). (v2 §3.2)",
    "v2 (5)": "The continuous analogue of self-attention is a non-local integral operator that aggregates information across "
    "the entire spatial domain: A(u)(x, t) = ∫_Ω K_att(u(x, t), u(y, t)) · (W_V u(y, t)) dy − u(x, t). Here, the kernel K_att "
    "is determined dynamically by query-key similarity, and W_V is the value projection matrix. (v2 §3.2)",
    "v2 (6)": "The Feed-Forward Network (FFN) is modeled as a local, pointwise reaction term that performs a nonlinear "
    "transformation at each position independently: R(u)(x, t) = FFN(u(x, t)) − u(x, t). (v2 §3.2)",
    "v2 (7)": "the coupling of positional encodings with the FFN induces an emergent diffusion effect, smoothing the "
    "information field without explicit convolutional operations: D(u) ≈ ∇_x · (D_eff(u, x) ∇_x u). (v2 §3.2)",
    "v2 (8)": "The effective diffusion coefficient D_eff depends on the gradient of the positional encodings and the Jacobian "
    "of the FFN: D_eff(u, x) ∝ |∇_x P(x)|² · Tr(∇_u FFN(u)) · σ²_att(x). (v2 §3.2)",
    "v2 (9)": "Layer Normalization provides a global dissipative force that stabilizes the system. It can be approximated as "
    "a control term that drives the field towards a zero-mean, unit-variance state: S(u)(x, t) ≈ −γ(x, t) (u(x, t) − μ_u(t)) "
    "/ √(σ²_u(t) + ε), where μ_u(t) = ∫_Ω u(y, t) dy and σ²_u(t) = ∫_Ω‖u(y, t) − μ_u(t)‖² dy are the spatial mean and "
    "variance of the field at time t. (v2 §3.2)",
    "v2 (10)": "We define a continuous-time, piecewise linear interpolant u^L(·, t) from the discrete states: u^L(x, t) = "
    "h^(⌈τ⌉)(x) + (τ − ⌈τ⌉)(h^(⌈τ⌉+1)(x) − h^(⌈τ⌉)(x)), where τ = Lt/T is the normalized depth, and h^(ℓ)(x) represents the "
    "hidden state at position x in layer ℓ. (v2 App. B.1)",
    "v2 (11)": "The residual update rule H^(ℓ+1) = H^(ℓ) + Δt · F_ℓ(H^(ℓ)) with Δt = T/L implies: (H^(ℓ+1) − H^(ℓ))/Δt = "
    "F_ℓ(H^(ℓ)). (v2 App. B.1)",
    "v2 (12)": "Our proof relies on two standard regularity assumptions …: 1. Uniform Lipschitz Continuity … 2. Temporal "
    "Consistency: The discrete operator F_ℓ converges to its continuous counterpart F as L → ∞ … we can bound the global "
    "error: ‖u^L(·, t) − u(·, t)‖ ≤ (C₁ · sup_ℓ‖F_ℓ − F‖ + C₂ · Δt) e^{L_F T}, where C₁, C₂ are constants related to the "
    "interpolation error. (v2 App. B.1)",
    "v2 (13)": "Consider the system's total energy, defined as the squared L₂-norm of the information field: E(t) = ½∫_Ω‖u(x, "
    "t)‖₂² dx. (v2 App. B.2)",
    "v2 (14)": "We analyze the time derivative of E(t): dE/dt = ∫_Ω⟨u, ∂u/∂t⟩dx = ∫_Ω⟨u, A(u) + R(u) + D(u) + S(u)⟩dx. (v2 "
    "App. B.2)",
    "v2 (15)": "The Layer Normalization operator pushes the activations towards a state with zero mean and unit variance … "
    "This can be shown to provide strong dissipation: ∫⟨u, S(u)⟩dx ≤ −2γE(t), where γ > 0 is the effective dissipation rate. "
    "Combining these bounds, we obtain the differential inequality: dE/dt ≤ 2(L_A + L_R − γ)E(t). (v2 App. B.2)",
    "v2 (16)": "The PDE formulation ∂_t u = F(u) is the continuous limit of the residual update rule. The solution can be "
    "formally written as: u(·, t) = u(·, 0) + ∫₀ᵗ F(u(·, s)) ds. (v2 App. B.3)",
    "v2 (17)": "Using the triangle inequality on the norm ‖u(·, t)‖ ≤ ‖u(·, 0)‖ + ‖∫₀ᵗ F(…) ds‖, we can lower-bound the "
    "fidelity: ρ(t) = (‖u(·, 0)‖² + ⟨u(·, 0), ∫₀ᵗ F(…)⟩)/(‖u(·, t)‖ · ‖u(·, 0)‖) ≥ (‖u(·, 0)‖ − ‖∫₀ᵗ F(…)‖)/(‖u(·, 0)‖ + ‖∫₀ᵗ "
    "F(…)‖). (v2 App. B.3)",
    "v2 (18)": "Consider the Taylor expansion of the FFN applied to a representation that includes positional information: "
    "FFN(u + P(x)) ≈ FFN(u) + J_FFN(u)P(x) + O(‖P(x)‖²), where J_FFN is the Jacobian of the FFN with respect to its input. "
    "(v2 App. B.4)",
    "v2 (19)": "Instead of a single interaction operator A, we have a weighted sum of operators, one for each head h: "
    "A_multi-head(u) = W_O Σ_{h=1}^H A_h(u), where W_O is the output projection and each A_h is an integral operator with its "
    "own dynamically computed kernel K_h(·, ·) and value projection W_{V,h}. (v2 App. B.4)",
}
