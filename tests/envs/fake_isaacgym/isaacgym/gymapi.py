"""The stand-in's simulation: each world is one MuJoCo model made of the actors' URDF files.

What it keeps of the real one's manners: its own order of joints and bodies (here reversed), quaternions xyzw, velocity
of the centre of mass, angular velocity in the world's frame, writes that show only after the next simulation step, of
two writes of a kind in one step only the last counts, positions per world or (FAKE_ISAACGYM_GLOBAL=1) of the whole.
"""

import os
import signal
from pathlib import Path

import mujoco
import numpy as np

SIM_PHYSX, UP_AXIS_Z, DOMAIN_SIM, DOF_MODE_POS = 1, 1, 2, 1
RIGID_BODY_DISABLE_GRAVITY = 1
_DOF = [(n, "<f4") for n in ("stiffness", "damping", "effort", "friction", "armature", "lower", "upper", "velocity")]


class _Bag:
    def __init__(self, **values):
        self.__dict__.update(values)


class Vec3:
    def __init__(self, x=0.0, y=0.0, z=0.0):
        self.x, self.y, self.z = x, y, z


class Quat:
    def __init__(self, x=0.0, y=0.0, z=0.0, w=1.0):
        self.x, self.y, self.z, self.w = x, y, z, w


class Transform:
    def __init__(self, p=None, r=None):
        self.p, self.r = p or Vec3(), r or Quat()


class Mat33:
    def __init__(self):
        self.x, self.y, self.z = Vec3(), Vec3(), Vec3()


class SimParams(_Bag):
    def __init__(self):
        super().__init__(dt=1 / 60, substeps=2, gravity=Vec3(0, 0, -9.8), physx=_Bag())


PlaneParams = AssetOptions = _Bag


class Tensor:
    def __init__(self, memory):
        self.memory = memory


def _array(v):
    return np.array([v.x, v.y, v.z])


class _Asset:
    def __init__(self, path, options):
        with open(path) as file:
            self.text = file.read()
        self.options = options
        folder = os.path.dirname(path)
        self.files = {f.name: f.read_bytes() for f in Path(folder).glob("*.obj")}
        m = self.spec().compile()
        self.bodies = [m.body(i).name for i in range(1, m.nbody)][::-1]
        self.dofs = [m.joint(j).name for j in range(m.njnt)][::-1]
        self.root = m.body(1).name
        self.shapes = {b: [g for g in range(m.ngeom) if m.geom_bodyid[g] == m.body(b).id] for b in self.bodies}

    def spec(self):
        return mujoco.MjSpec.from_string(self.text, assets=dict(self.files))


class _Env:
    def __init__(self, origin, first):
        self.origin, self.first, self.actors, self.spec = origin, first, [], mujoco.MjSpec()
        self.drive, self.body, self.shape = {}, {}, {}
        self.changed = True


class Gym:
    def create_sim(self, compute_device, graphics_device, type, params):
        assert params.up_axis == UP_AXIS_Z
        if params.use_gpu_pipeline:
            return None
        return _Bag(params=params, envs=[], ground=None, prepared=False, pending={})

    def destroy_sim(self, sim):
        sim.envs = []

    def add_ground(self, sim, params):
        sim.ground = params

    def set_sim_params(self, sim, params):
        for env in sim.envs:
            if sim.prepared:
                env.model.opt.gravity[:] = _array(params.gravity)

    def load_asset(self, sim, rootpath, filename, options):
        return _Asset(os.path.join(rootpath, filename), options)

    def get_asset_dof_names(self, asset):
        return list(asset.dofs)

    def get_asset_rigid_body_names(self, asset):
        return list(asset.bodies)

    def get_asset_rigid_shape_count(self, asset):
        return sum(len(s) for s in asset.shapes.values())

    def get_asset_rigid_body_shape_indices(self, asset):
        counts = [len(asset.shapes[b]) for b in asset.bodies]
        return [_Bag(start=sum(counts[:i]), count=c) for i, c in enumerate(counts)]

    def create_env(self, sim, lower, upper, per_row):
        i = len(sim.envs)
        size = upper.x - lower.x
        first = sum(len(e.actors) for e in sim.envs)
        sim.envs.append(_Env(np.array([i % per_row * size, i // per_row * size, 0.0]), first))
        return sim.envs[-1]

    def begin_aggregate(self, env, bodies, shapes, self_collisions):
        return True

    def end_aggregate(self, env):
        return True

    def create_actor(self, env, asset, pose, name, group, filter, segmentation=0):
        handle = len(env.actors)
        spec = asset.spec()
        frame = env.spec.worldbody.add_frame(pos=_array(pose.p), quat=[pose.r.w, pose.r.x, pose.r.y, pose.r.z])
        prefix = f"a{handle}/"
        env.spec.attach(spec, prefix=prefix, frame=frame)
        root = env.spec.body(prefix + asset.root)
        if asset.options.fix_base_link:
            root.mocap = True
        else:
            root.add_freejoint(name=prefix + "free")
        for body in asset.bodies if asset.options.disable_gravity else []:
            env.spec.body(prefix + body).gravcomp = 1.0
        for body in asset.bodies:
            env.spec.body(prefix + body).simple = False  # its inertia will be set
        for dof in asset.dofs:
            env.spec.add_actuator(name=prefix + dof, target=prefix + dof, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        env.actors.append((asset, prefix))
        return handle

    def get_actor_index(self, env, handle, domain):
        return env.first + handle

    # ---- properties

    def get_actor_dof_properties(self, env, handle):
        asset, _ = env.actors[handle]
        fresh = np.zeros(len(asset.dofs), [("driveMode", "<i4"), *_DOF])
        return env.drive.setdefault(handle, fresh).copy()

    def set_actor_dof_properties(self, env, handle, props):
        env.drive[handle], env.changed = props.copy(), True
        return True

    def get_actor_rigid_body_properties(self, env, handle):
        asset, _ = env.actors[handle]
        return env.body.get(handle) or [_Bag(mass=0.0, inertia=Mat33(), com=Vec3()) for _ in asset.bodies]

    def set_actor_rigid_body_properties(self, env, handle, props, recompute):
        env.body[handle], env.changed = props, True
        return True

    def get_actor_rigid_shape_properties(self, env, handle):
        count = self.get_asset_rigid_shape_count(env.actors[handle][0])
        return env.shape.get(handle) or [_Bag(friction=1.0, filter=0) for _ in range(count)]

    def set_actor_rigid_shape_properties(self, env, handle, props):
        env.shape[handle], env.changed = props, True
        return True

    # ---- simulation

    def prepare_sim(self, sim):
        import torch

        for env in sim.envs:
            self._compile(sim, env)
        actors, dofs = len(sim.envs[0].actors), len(sim.envs[0].columns)
        sim.root = torch.zeros(len(sim.envs) * actors, 13)
        sim.dof = torch.zeros(len(sim.envs) * dofs, 2)
        sim.prepared = True
        return True

    def _compile(self, sim, env):
        spec = env.spec
        spec.option.timestep, spec.option.gravity = sim.params.dt, _array(sim.params.gravity)
        spec.option.integrator, spec.option.cone = (
            mujoco.mjtIntegrator.mjINT_IMPLICITFAST, mujoco.mjtCone.mjCONE_ELLIPTIC,
        )  # fmt: skip
        spec.option.impratio, spec.option.iterations = 10, 20
        if sim.ground is not None:
            friction = [sim.ground.static_friction, 0.005, 0.0001]
            spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], friction=friction, name="ground")
        bits = {}
        for handle, (asset, prefix) in enumerate(env.actors):
            props = iter(self.get_actor_rigid_shape_properties(env, handle))
            for body in asset.bodies:
                bits[prefix + body] = [next(props).filter for _ in asset.shapes[body]]
        names = [b for b in bits if bits[b]]
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if any(x & y for x in bits[a] for y in bits[b]):
                    spec.add_exclude(bodyname1=a, bodyname2=b)
        m = env.model = spec.compile()
        env.data = mujoco.MjData(m)
        env.columns = [m.joint(p + d).id for a, p in env.actors for d in a.dofs]
        m.jnt_actfrclimited[:] = 0

    def _apply(self, env):
        """What was set of properties."""
        m = env.model
        for handle, (asset, prefix) in enumerate(env.actors):
            for dof, p in zip(asset.dofs, env.drive.get(handle, ()), strict=handle in env.drive):
                assert p["driveMode"] == DOF_MODE_POS
                a = m.actuator(prefix + dof).id
                m.actuator_biastype[a] = mujoco.mjtBias.mjBIAS_AFFINE
                m.actuator_gainprm[a, 0] = p["stiffness"]
                m.actuator_biasprm[a, :3] = 0.0, -p["stiffness"], -p["damping"]
                m.actuator_forcelimited[a], m.actuator_forcerange[a] = 1, (-p["effort"], p["effort"])
                m.dof_armature[m.jnt_dofadr[m.joint(prefix + dof).id]] = p["armature"]
            for body, p in zip(asset.bodies, env.body.get(handle, ()), strict=handle in env.body):
                i = m.body(prefix + body).id
                tensor = np.stack([_array(p.inertia.x), _array(p.inertia.y), _array(p.inertia.z)])
                values, axes = np.linalg.eigh(tensor)
                axes[:, 2] *= np.sign(np.linalg.det(axes))
                mujoco.mju_mat2Quat(m.body_iquat[i], axes.ravel())
                m.body_mass[i], m.body_inertia[i] = p.mass, values
            shapes = iter(env.shape.get(handle, ()))
            for body in asset.bodies:
                i = m.body(prefix + body).id
                for g in range(m.body_geomadr[i], m.body_geomadr[i] + m.body_geomnum[i]):
                    m.geom_friction[g, 0] = next(shapes).friction
                    m.geom_condim[g] = 4
        mujoco.mj_setConst(m, env.data)
        env.changed = False

    def simulate(self, sim):
        if os.environ.get("FAKE_ISAACGYM_CRASH"):
            print("segmentation fault of the stand-in", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        actors, dofs = len(sim.envs[0].actors), len(sim.envs[0].columns)
        pending, sim.pending = sim.pending, {}
        for world, env in enumerate(sim.envs):
            if env.changed:
                self._apply(env)
            m, d = env.model, env.data
            for handle, (asset, prefix) in enumerate(env.actors):
                index = world * actors + handle
                if index in pending.get("root", ((), ()))[0]:
                    self._place(env, asset, prefix, pending["root"][1][index])
                if index in pending.get("dof", ((), ()))[0]:
                    for k, j in enumerate(env.columns):
                        if m.joint(j).name.startswith(prefix):
                            pos, vel = pending["dof"][1][world * dofs + k]
                            d.qpos[m.jnt_qposadr[j]], d.qvel[m.jnt_dofadr[j]] = pos, vel
            for k, j in enumerate(env.columns):
                d.ctrl[m.actuator(m.joint(j).name).id] = sim.targets[world * dofs + k]
            mujoco.mj_step(m, d)

    def _place(self, env, asset, prefix, row):
        m, d = env.model, env.data
        body = m.body(prefix + asset.root).id
        pos = row[:3] - (env.origin if os.environ.get("FAKE_ISAACGYM_GLOBAL") else 0.0)
        quat = row[[6, 3, 4, 5]]
        if asset.options.fix_base_link:
            d.mocap_pos[m.body_mocapid[body]], d.mocap_quat[m.body_mocapid[body]] = pos, quat
            return
        flat = np.zeros(9)
        mujoco.mju_quat2Mat(flat, quat)
        mat = flat.reshape(3, 3)
        q, v = m.jnt_qposadr[m.body_jntadr[body]], m.jnt_dofadr[m.body_jntadr[body]]
        d.qpos[q : q + 7] = [*pos, *quat]
        d.qvel[v : v + 3] = row[7:10] - np.cross(row[10:], mat @ m.body_ipos[body])
        d.qvel[v + 3 : v + 6] = mat.T @ row[10:]

    def fetch_results(self, sim, wait):
        pass

    # ---- tensors

    def acquire_actor_root_state_tensor(self, sim):
        return Tensor(sim.root)

    def acquire_dof_state_tensor(self, sim):
        return Tensor(sim.dof)

    def refresh_actor_root_state_tensor(self, sim):
        import torch

        rows = []
        for env in sim.envs:
            m, d = env.model, env.data
            mujoco.mj_kinematics(m, d)
            for asset, prefix in env.actors:
                body = m.body(prefix + asset.root).id
                origin = env.origin if os.environ.get("FAKE_ISAACGYM_GLOBAL") else 0.0
                row = np.zeros(13)
                row[:3], row[3:7] = d.xpos[body] + origin, d.xquat[body][[1, 2, 3, 0]]
                if not asset.options.fix_base_link:
                    v, mat = m.jnt_dofadr[m.body_jntadr[body]], d.xmat[body].reshape(3, 3)
                    row[10:] = mat @ d.qvel[v + 3 : v + 6]
                    row[7:10] = d.qvel[v : v + 3] + np.cross(row[10:], mat @ m.body_ipos[body])
                rows.append(row)
        sim.root.copy_(torch.tensor(np.array(rows)))
        return True

    def refresh_dof_state_tensor(self, sim):
        import torch

        rows = [
            (e.data.qpos[e.model.jnt_qposadr[j]], e.data.qvel[e.model.jnt_dofadr[j]])
            for e in sim.envs
            for j in e.columns
        ]
        sim.dof.copy_(torch.tensor(np.array(rows)))
        return True

    def set_actor_root_state_tensor_indexed(self, sim, full, ids, count):
        self._keep(sim, "root", full, ids, count)

    def set_dof_state_tensor_indexed(self, sim, full, ids, count):
        self._keep(sim, "dof", full, ids, count)

    def _keep(self, sim, kind, full, ids, count):
        assert str(ids.memory.dtype) == "torch.int32"
        sim.pending[kind] = (set(ids.memory[:count].tolist()), full.memory.numpy().astype(float))

    def set_dof_position_target_tensor(self, sim, targets):
        sim.targets = targets.memory.numpy().astype(float)
        return True


def acquire_gym():
    return Gym()
