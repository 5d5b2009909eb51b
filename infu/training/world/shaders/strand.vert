#version 330
// A strand of hair is a ribbon that faces the viewer: two vertices a point, `side` -1 and 1.
uniform mat4 view;
uniform float thickness;
in vec3 position;
in vec3 tangent;
in vec3 strand;  // side, how far along (0 root, 1 tip), tint
out vec3 P;
out vec3 T;
out vec3 S;

void main() {
    float taper = 1.0 - 0.75 * strand.y * strand.y;
    P = position + normalize(cross(tangent, vec3(0.0, 0.0, 1.0)) + 1e-5) * strand.x * thickness * taper;
    T = tangent;
    S = strand;
    gl_Position = view * vec4(P, 1.0);
}
